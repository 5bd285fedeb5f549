"""What tests read out of README and docs."""

from __future__ import annotations

import re


def first_column(text: str, heading: str) -> list[str]:
    """The codes in the first cells of the table under that first cell of its header."""
    table = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", text, re.M)
    assert table is not None, heading
    return [name for line in table[1].splitlines() for name in re.findall(r"`([\w-]+)`", line.split("|")[1])]
