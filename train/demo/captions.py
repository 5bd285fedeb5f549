"""The captions of the demo's text-to-image data: "a small red seven at the top left on black".

A caption names five attributes in one of three paraphrases, from a closed vocabulary, so that it can be read back without a language model.
One colour of each digit is withheld from training: a model that draws it has composed what it was taught apart. (GenEval: Ghosh et al. 2023,
arXiv:2310.11513, asks for attributes in the same manner.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

VALUES = {  # attribute -> the words for it; a place is two words
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "size": ("small", "large"),
    "colour": ("white", "red", "green", "blue"),
    "place": ("top left", "top right", "centre left", "centre right", "bottom left", "bottom right"),
    "background": ("black", "grey"),
}
ATTRIBUTES = tuple(VALUES)
WITHHELD = {  # digit -> the colour that it has in no image of the train split
    "zero": "blue",
    "one": "green",
    "two": "white",
    "three": "red",
    "four": "blue",
    "five": "green",
    "six": "white",
    "seven": "red",
    "eight": "blue",
    "nine": "green",
}
PARAPHRASES = (
    "a {size} {colour} {digit} at the {place} on {background}",
    "{place} a {colour} {digit} that is {size} on a {background} background",
    "{background} background with a {size} {digit} in {colour} at the {place}",
)


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What an image shows, one word (of a place two) of `VALUES` each."""

    digit: str
    size: str
    colour: str
    place: str
    background: str

    @property
    def withheld(self) -> bool:
        """Whether the train split has no such digit in such a colour."""
        return WITHHELD[self.digit] == self.colour

    @property
    def captions(self) -> tuple[str, ...]:
        """Its paraphrases."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return tuple(pattern.format(**named) for pattern in PARAPHRASES)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The place of each value in `VALUES`, in the order of ATTRIBUTES."""
        return tuple(words.index(value) for words, value in zip(VALUES.values(), astuple(self), strict=True))


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word that a caption may have, sorted."""
    every = [*PARAPHRASES, *(value for values in VALUES.values() for value in values)]
    return tuple(sorted({word for text in every for word in text.split() if "{" not in word}))


def read(caption: str) -> Attributes:
    """The attributes that a caption names, in whatever order. Raises ValueError, quoting it, for one that does not name each exactly once."""
    words = caption.lower().split()
    if strange := next((word for word in words if word not in vocabulary()), None):
        raise ValueError(f"caption {caption!r}: {strange!r} is no word of the demo's captions ({PARAPHRASES[0]!r})")
    pairs = {*words, *(f"{one} {two}" for one, two in pairwise(words))}
    found: dict[str, str] = {}
    for name, values in VALUES.items():
        named = [value for value in values if value in pairs]
        if len(named) != 1:
            raise ValueError(f"caption {caption!r}: names {len(named)} of the demo's {name}s, not one: {', '.join(values)}")
        found[name] = named[0]
    return Attributes(**found)


def numbers(captions: Iterable[str]) -> NDArray[np.int64]:
    """(N, attributes): `Attributes.numbers` of each. Raises ValueError as `read` does."""
    return np.array([read(caption).numbers for caption in captions], dtype=np.int64).reshape(-1, len(ATTRIBUTES))


def withheld(numbers_NA: Sequence[Sequence[int]] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,): whether each row of attributes, given as numbers, has a digit in the colour that is withheld from training."""
    digits, colours = VALUES["digit"], VALUES["colour"]
    colour_of = np.array([colours.index(WITHHELD[digit]) for digit in digits])
    rows = np.asarray(numbers_NA, dtype=np.int64).reshape(-1, len(ATTRIBUTES))
    return colour_of[rows[:, ATTRIBUTES.index("digit")]] == rows[:, ATTRIBUTES.index("colour")]
