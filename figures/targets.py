"""How a target looks and is called: one colour, one marker and one label, the same in every figure and in every panel.

Known targets have a fixed look. Any other gets one that no known target has, in alphabetical order of those in the table. Controls are grey,
with lines of their own. The line of a target says which projector: solid if it was fitted, dashed if it is the checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pandas as pd

from gsnr import table
from gsnr.figures.style import COLOURS, CONTROL, GREY

Key = tuple[str, str, str]  # target, control, projector
Look = tuple[str, str]  # colour, marker

BLACK = "#000000"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = COLOURS[:6]  # yellow is hard to see on white
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "p", "*", "d")
KNOWN: dict[str, Look] = {
    "ahpa": (BLUE, "o"),
    "static": (SKY, "D"),
    "heuristic": (PURPLE, ">"),
    "repa": (RED, "D"),
    "irepa": (PURPLE, "v"),
    "sra": (SKY, "<"),
    "sra2": (BLACK, ">"),
    "uniform_G1": (PURPLE, "o"),
    "uniform_G2": (SKY, "v"),
    "uniform_mid": (ORANGE, "s"),
    "uniform_deep": (GREEN, "^"),
    "uniform_both": (RED, "<"),
    "uniform_G1-G4": (BLACK, "p"),
    "rare_G4": (BLACK, "D"),
    "denoising": (BLUE, "*"),
}
LABELS = {"ahpa": "AHPA", "repa": "REPA", "irepa": "iREPA", "sra": "SRA", "sra2": "SRA 2"}  # where a table brings none
_ORDER = (PURPLE, SKY, RED, BLACK, ORANGE, GREEN, BLUE)  # neighbours differ in colour and marker
_ALL = [(colour, MARKERS[(i + shift) % len(MARKERS)]) for shift in range(len(MARKERS)) for i, colour in enumerate(_ORDER)]
FREE: tuple[Look, ...] = tuple(look for look in _ALL if look not in KNOWN.values())

# control -> line, and the looks of controls of the first, the second, ... target that has one
CONTROL_LINES: dict[str, Any] = {"shuffled": ":", "shuffled_class": (0, (3, 1, 1, 1, 1, 1)), "constant": "-."}
CONTROLS: dict[str, tuple[Look, ...]] = {
    "shuffled": tuple(product((CONTROL, "#404040"), ("P", *MARKERS))),
    "shuffled_class": tuple(product(("#4D4D4D", "#8C8C8C"), ("*", *MARKERS))),
    "constant": tuple(product((GREY, "#B0B0B0"), ("X", *MARKERS))),
    "other": tuple(product(("#808080", "#202020"), MARKERS)),
}
PROJECTOR_LINES = {"ckpt": "--", "fresh": (0, (1, 1))}


def looks(targets: Iterable[str]) -> dict[str, Look]:
    """target -> (colour, marker), for these and all known targets; no two are alike. Raises ValueError where looks run out."""
    others = sorted(set(targets) - KNOWN.keys())
    if len(others) > len(FREE):
        raise ValueError(f"the table has {len(others)} targets beside the known ones, and there are looks for {len(FREE)}; measure fewer at a time")
    return KNOWN | dict(zip(others, FREE, strict=False))


def _greys(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Look]:
    """(target, control) -> (colour, marker); no two are alike. Raises ValueError where looks run out."""
    pairs = sorted(pairs)
    found: dict[tuple[str, str], Look] = {}
    for kind, greys in CONTROLS.items():
        mine = [pair for pair in pairs if (pair[1] if pair[1] in CONTROL_LINES else "other") == kind]
        if len(mine) > len(greys):
            raise ValueError(f"the table has {len(mine)} controls of kind {kind!r}, and there are looks for {len(greys)}; measure fewer at a time")
        found |= dict(zip(mine, greys, strict=False))
    return found


def labels_of(frame: pd.DataFrame) -> dict[str, str]:
    """target -> what the table calls it, or else what we do; without those of whom neither says anything."""
    return LABELS | frame.attrs.get("labels", {})


class Targets:
    """Looks and labels of the targets and controls of one table. Take the whole table, so that all figures of it agree."""

    def __init__(self, frame: pd.DataFrame) -> None:
        pairs = set(zip(frame["target"], frame["control"], strict=True))
        self.looks = looks(target for target, _ in pairs)
        self.greys = _greys(pair for pair in pairs if pair[1] != "none")
        self.labels = labels_of(frame)

    def style(self, key: Key) -> dict[str, Any]:
        """How matplotlib is to draw it: colour, marker and line."""
        target, control, projector = key
        true = control == "none"
        colour, marker = self.looks[target] if true else self.greys[target, control]
        line = PROJECTOR_LINES.get(projector, "-") if true else CONTROL_LINES.get(control, "--")
        return {"color": colour, "marker": marker, "ls": line}

    def name(self, key: Key) -> str:
        """How it is called in legends and tables."""
        return table.target_name(*key, labels=self.labels)
