"""A pattern for messages that list plug-ins: ours are all there, in order; a file that someone adds may stand anywhere between them."""

from __future__ import annotations

OTHERS = r"(?:[\w-]+, )*"


def choose_from(names: str) -> str:
    """names: as the message has them, "a, b, c"."""
    return f"choose from {OTHERS}" + f", {OTHERS}".join(names.split(", ")) + r"\b"
