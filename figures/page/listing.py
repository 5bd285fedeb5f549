"""A table on the page: sorted by a click on a heading, numbers at the right, with a link that saves it as CSV."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from gsnr.figures.page.layout import render, template

NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?( (\[|to ).*)?")  # 1.5, or 1.5 [1.2, 1.8], or 1.5 to 2
LONG = 60  # letters; a column with a longer text may break its lines
_TABLE = template(
    """<div class="box" tabindex="0" role="region" aria-label="Table: {{ name }}"><table>
<thead><tr>{% for c in columns %}<th scope="col"{% if c.kind %} class="{{ c.kind }}"{% endif %}><button type="button">{{ c.heading }}</button></th>
{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td{% if columns[loop.index0].kind %} class="{{ columns[loop.index0].kind }}"{% endif %}
{% if cell.exact %} title="{{ cell.exact }}"{% endif %}>{{ cell.text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="note"><a download="{{ file }}.csv" href="data:text/csv;base64,{{ csv }}">CSV</a> of {{ csv_rows }} rows</p>
"""
)


@dataclass(frozen=True)
class Cell:
    """exact: the number of which the text is a rounding; "" where it is none."""

    text: str
    exact: str = ""


@dataclass(frozen=True)
class Column:
    """kind: "n" of numbers, "long" of texts that may break, or ""."""

    heading: str
    kind: str


def _cell(value: Any) -> Cell:
    if isinstance(value, bool):
        return Cell("yes" if value else "")
    if isinstance(value, float):
        text = "" if value != value else f"{value:.4g}"
        return Cell(text, repr(value) if text and float(text) != value else "")
    return Cell("" if value is None else str(value))


def _kind(cells: list[Cell]) -> str:
    texts = [cell.text for cell in cells if cell.text]
    if texts and all(NUMBER.fullmatch(text) for text in texts):
        return "n"
    return "long" if any(len(text) > LONG for text in texts) else ""


def listing(shown: pd.DataFrame, name: str, exact: pd.DataFrame | None = None) -> Markup:
    """name: what the table is called, and its CSV file. exact: what the CSV holds instead of what is shown. The frame's index is left out."""
    columns = {str(column): [_cell(value) for value in shown[column].tolist()] for column in shown}
    saved = shown if exact is None else exact
    return render(
        _TABLE,
        name=name,
        file=re.sub(r"\W+", "-", name).strip("-"),
        columns=[Column(heading, _kind(cells)) for heading, cells in columns.items()],
        rows=list(zip(*columns.values(), strict=True)),
        csv=base64.b64encode(saved.to_csv(index=False).encode()).decode(),
        csv_rows=len(saved),
    )
