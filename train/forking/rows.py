"""Rows of forks: what a fork is aligned to, as one word, and the configuration that this makes of the checkpoint's.

none                     no alignment: what all others are compared with
own                      as the checkpoint was trained
repa                     a row of `gsnr train --list-presets`
repa@3                   ... at block 3
repa@3:0-0.5             ... for t from 0 to 0.5 alone, with the same mean weight over t
repa@3:0-0.5=0.25        ... of weight 0.25
shuffled:repa            ... to the features of other images; also shuffled_class:, random:, constant: (`gsnr.train.data.controls`)
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from gsnr.commandline import choose
from gsnr.train import presets
from gsnr.train.config import PLUGGED, TrainConfig, alignment_config, overlay, resolve
from gsnr.train.data.controls import CONTROLS, NONE
from gsnr.train.schedules import make_schedule
from gsnr.train.schedules._measured import MeasuredSchedule

VANILLA, OWN = "none", "own"
NUMBER = r"\d*\.?\d+"
FORM = re.compile(
    rf"(?:(?P<control>\w+):)?(?P<name>[a-z][\w.-]*)(?:@(?P<block>\d+))?(?::(?P<low>{NUMBER})-(?P<high>{NUMBER}))?(?:=(?P<weight>{NUMBER}))?"
)
AS_IT_WAS = {"sample_every": 0, "trackers": "none", "gsnr_every": 0, "keep_last": 1, "keep_every": 0}  # no option that changes a step


@dataclass(frozen=True, kw_only=True)
class ForkRow:
    """label: the word. name: of the preset's row, or none, or own. control: of the features. block, low and high (in t), weight: None for the
    row's own."""

    label: str
    name: str
    control: str = NONE
    block: int | None = None
    low: float | None = None
    high: float | None = None
    weight: float | None = None

    @property
    def folder(self) -> str:
        """A name for files."""
        return self.label.replace(":", "~")


def parse(word: str) -> ForkRow:
    """Raises ValueError, naming the flag, for a word of another form or a name that does not exist."""
    found = FORM.fullmatch(word)
    if found is None:
        raise ValueError(f"--rows {word!r}: write ROW, ROW@BLOCK, ROW@BLOCK:LOW-HIGH (of t), ROW=WEIGHT or CONTROL:ROW")
    parts = found.groupdict()
    choose("--rows", parts["name"], (VANILLA, OWN, *presets.ROWS))
    if (row := presets.ROWS.get(parts["name"])) is not None and row.model:
        raise ValueError(f"--rows {word}: changes the model ({', '.join(row.model)}), which a fork has from the checkpoint")
    if parts["control"] is not None:
        choose(f"--rows {word}: control", parts["control"], CONTROLS)
    changed = [key for key in ("control", "block", "low", "weight") if parts[key] is not None]
    if parts["name"] == VANILLA and changed:
        raise ValueError(f"--rows {word}: {VANILLA} has no alignment, and so no {changed[0]}")
    low, high, weight = (None if parts[key] is None else float(parts[key]) for key in ("low", "high", "weight"))
    if low is not None and high is not None and not 0 <= low < high <= 1:
        raise ValueError(f"--rows {word}: t goes from 0 to 1, upwards")
    block = None if parts["block"] is None else int(parts["block"])
    return ForkRow(label=word, name=parts["name"], control=parts["control"] or NONE, block=block, low=low, high=high, weight=weight)


def _size(config: TrainConfig) -> str:
    """The published size of this model, or the demo's: rows differ in blocks and heads by it. An MMDiT's is that of a SiT of as many blocks."""
    if config.model.text:
        return next((name for name, (depth, *_) in presets.SIZES.items() if depth == config.model.depth), presets.DEMO)
    own = (config.model.depth, config.model.hidden_size, config.model.num_heads, config.model.input_size)
    return next((name for name, size in presets.SIZES.items() if size == own), presets.DEMO)


def _aligned(row: ForkRow, base: TrainConfig) -> dict[str, dict[str, Any]]:
    """The sections of the configuration that are the row's: the alignment, the schedules, whatever else a plug-in declares."""
    if row.name == OWN:
        for flag, measured in (
            ("stop-rule", base.stop_rule["name"] != "none"),
            ("schedule", isinstance(make_schedule(base.schedule), MeasuredSchedule)),
        ):
            if measured:
                raise ValueError(f"--rows {row.label}: its run decides as it goes (--{flag}), which no fork takes over; name a row of presets")
        return {section: dict(getattr(base, section)) for section in PLUGGED}
    made = {} if row.name == VANILLA else presets.at(row.name, _size(base))
    return {section: dict(made.get(section, {"name": usual})) for section, (_, usual) in PLUGGED.items()}


def config_of(row: ForkRow, base: TrainConfig, seed: int, first: int, steps: int, changes: dict[str, Any]) -> TrainConfig:
    """The configuration of a fork of `steps` steps after step `first` of a run with configuration `base`. changes: laid over all rows alike.

    Raises ValueError for what does not fit, such as a block that the model lacks or a schedule that is over before the fork begins."""
    sections = _aligned(row, base)
    if row.block is not None:
        sections["alignment"]["tap"] = row.block
    if row.weight is not None:
        sections["alignment"]["weight"] = row.weight
    if row.low is not None and row.high is not None:
        sections["schedule"] = _window(row, sections["schedule"])
    values = overlay(asdict(base) | sections, changes)
    values["data"] = values["data"] | {"control": row.control if row.name != OWN or row.control != NONE else base.data.control}
    save = max(1, min(base.save_every, -(-steps // 3)))
    try:
        config = resolve(values | AS_IT_WAS | {"seed": seed, "steps": first + steps, "init": "", "save_every": save})
        if row.control != NONE and not alignment_config(config.alignment).needs:
            raise ValueError(f"its target is no feature of the cache, so that it has no control {row.control!r}")
        if make_schedule(config.schedule).over(first + 1):
            raise ValueError(f"its schedule is over before step {first + 1}, where the fork begins: it would be {VANILLA}")
    except ValueError as error:
        raise ValueError(f"--rows {row.label}: {error}") from error
    return config


def _window(row: ForkRow, schedule: dict[str, Any]) -> dict[str, Any]:
    if schedule["name"] != "constant":
        raise ValueError(f"--rows {row.label}: has the schedule {schedule['name']!r} already; a range of t is for a row without one")
    edges = sorted({0.0, row.low, row.high, 1.0})  # type: ignore[type-var]
    weights = [float(row.low <= low < row.high) for low in edges[:-1]]  # type: ignore[operator]
    return {"name": "t_table", "edges": tuple(edges), "weights": tuple(weights), "normalise": True}
