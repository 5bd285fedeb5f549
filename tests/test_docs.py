"""What README and the pages under docs/ hold to: short sentences, commands that exist, links that lead somewhere, every public name documented.

`make docs` builds the site with --strict, which finds broken links between its pages; here are the files that are no pages of it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import gsnr
from gsnr.commands import COMMANDS
from tests.conftest import REPO

PAGES = sorted((REPO / "docs").rglob("*.md"))
ROOT = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
LONGEST_SENTENCE = 40  # words
LONGEST_README = 900
ABBREVIATIONS = r"\b(Figs?|Secs?|Eqs?|App|Tables?|al|vs|cf|Nos?)\."
LINK = r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)"


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, list items and headings, each on one line; no code, tables, pictures or directives of mkdocstrings."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    gathered: list[str] = []
    code = False  # an indented block goes on until a line is indented less
    before = ""
    for line in [*text.splitlines(), ""]:
        code = line.startswith("    ") and (code or not before.strip() or before.startswith((":::", "!!!")))
        skipped = code or line.lstrip().startswith(("|", ":::", "<!--", "![")) or not line.strip()
        if skipped or re.match(r" *([*+-]|\d+\.|#+) ", line):
            if gathered:
                yield " ".join(gathered)
            gathered = []
        if not skipped:
            gathered.append(re.sub(r"^ *([*+-]|\d+\.|#+) ", "", line).strip())
        before = line
    assert not gathered


def words(text: str) -> int:
    """Code between backticks counts as one word."""
    return sum(any(c.isalnum() for c in word) for word in text.split())


def sentences(text: str) -> Iterator[str]:
    for block in blocks(text):
        plain = re.sub(LINK, r"\1", re.sub(r"`[^`]+`", "Code", block))
        plain = re.sub(ABBREVIATIONS, r"\1", plain)
        yield from re.split(r"(?<=[.!?])[\"')*_]*\s+(?=[^a-z])", plain)


@pytest.mark.parametrize("text, found", [
    ("One. Two (see Fig. 4). three goes on: and on; yes.", ["One.", "Two (see Fig 4). three goes on: and on; yes."]),
    ("A `b. C` d,\nend.\n\n    code. Code.\n\n* item. Next\n  line\n* item\n", ["A Code d, end.", "item.", "Next line", "item"]),
    ("| a. B |\n|---|\n\n# Head\nBody [text](url.html).\n\n```python\nx. Y\n```\n", ["Head", "Body text."]),
])
def test_sentences_are_found(text: str, found: list[str]) -> None:
    assert list(sentences(text)) == found


@pytest.mark.parametrize("path", [*PAGES, *ROOT], ids=lambda path: str(path.relative_to(REPO)))
def test_sentences_are_short(path: Path) -> None:
    long = [f"{words(s)} words: {s}" for s in sentences(path.read_text()) if words(s) > LONGEST_SENTENCE]
    assert not long, "\n".join(long)
