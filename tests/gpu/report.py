"""The records of the stages as one page of Markdown."""

from __future__ import annotations

import math
from typing import Any


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value).replace("|", "\\|")
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows: list[dict[str, Any]]) -> str:
    """Columns in the order in which they first come."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(records: list[dict[str, Any]]) -> str:
    parts = []
    for record in records:
        said = f"{record['seconds']:.0f} s" + ("" if record["status"] == "ok" else f"; {record['status']}")
        parts.append(
            f"## {record['title']}\n\n`python -m tests.gpu --only {record['stage']}` ({said})\n\n" + (table(record["rows"]) or "nothing found")
        )
    return "\n\n".join(parts) + "\n"
