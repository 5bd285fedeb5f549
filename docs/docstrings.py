"""For mkdocstrings: docstrings here are plain text for help(), not Markdown. What they say in columns becomes a list, formulas stay as they are."""

from __future__ import annotations

import re
from typing import Any

import griffe

COLUMNS = r"(\S+(?: \S+)*?) {2,}(\S.*)"  # a name, two blanks or more, what it is


def markdown(text: str) -> str:
    return "\n\n".join(_block(part) for part in re.split(r"\n\s*\n", text.strip("\n")))


def _block(part: str) -> str:
    """Prose, then perhaps a list of what stands in columns; anything else with a layout stays a block of text."""
    if not re.search(r"^ |\S {2,}\S", part, re.M):
        return escaped(part)
    prose: list[str] = []
    items: list[str] = []
    for line in part.splitlines():
        named = re.fullmatch(COLUMNS, line)
        if named:
            items.append(f"* `{named[1]}`: {escaped(named[2])}")
        elif line.startswith("  ") and items:
            items.append(f"  {escaped(line.strip())}")
        elif not line.startswith(" ") and not items:
            prose.append(escaped(line))
        else:
            return f"```text\n{part}\n```"
    return "\n".join([*prose, "", *items])


def escaped(text: str) -> str:
    """Signs of Markdown and HTML in a text mean themselves, but for code in backticks."""
    pieces = re.split(r"(`[^`\n]+`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*|\[\]])", r"\\\1", p.replace("&", "&amp;").replace("<", "&lt;")) for p in pieces)


class Plain(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
