"""True targets beside their floor and their controls, with each kind of projector."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import GSNR, floor_band, keys_of, legend_below, legend_of_signs, panel, rows_of, single, symlog
from gsnr.figures.style import PAGE, paper
from gsnr.figures.targets import Key, Targets

TABLE = "alignment"
TITLE = "A high G-SNR by itself proves nothing: what targets of other images reach, with each kind of projector"
CAPTION = (
    "B x G-SNR of true targets, of the same target of other images (shuffled) and, where it was measured, of a constant vector. A projector "
    "that was fitted to the shuffled control leaves no signal but what all images share. With the checkpoint's own projector controls have "
    "signal, so a high G-SNR by itself does not speak for a target. Shaded: 95 % intervals of bins; grey: the floors, each target's highest control. "
    "Open markers: not detected, or not above the floor. The axis is linear up to 10 and logarithmic beyond."
)
TITLES = {"fit": "projectors fitted alike", "ckpt": "the checkpoint's own projector", "fresh": "fresh projectors"}
OTHERS = {"shuffled": "targets of other images", "shuffled_class": "of other images of its class", "constant": "a constant vector"}
FLOOR = ("shuffled", "constant")  # of which the floor is the highest; controls within a class say what class it is
MOST = 4  # true targets in a panel


def _said(cells: pd.DataFrame, keys: list[Key]) -> str:
    """In how many bins the first control has signal."""
    control = rows_of(cells, next(key for key in keys if key[1] != "none"))
    name = control["control"].iloc[0]
    detected = int((~control["below_detection"].astype(bool)).sum())
    return f"{OTHERS.get(name, name)}: signal in {detected} of {len(control)} bins"


def _chosen(cells: pd.DataFrame, projector: str, controlled: str) -> list[Key]:
    """The target that has controls, a few other true ones, and the controls that make its floor."""
    keys = [key for key in keys_of(cells) if key[2] == projector]
    true = sorted((key for key in keys if key[1] == "none"), key=lambda key: key[0] != controlled)[:MOST]
    controls = [key for key in keys if key[1] != "none" and key[0] == controlled]
    return [*true, *([key for key in controls if key[1] in FLOOR] or controls[:1])]


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Controls of the first target that has some. Raises ValueError where none has."""
    targets, cells = Targets(cells), single(cells)
    controls = cells[cells["control"] != "none"]
    if controls.empty:
        raise ValueError("fig_controls: the table has no controls; measure a target with --controls shuffled,constant")
    controlled = str(controls["target"].iloc[0])
    projectors = [p for p in TITLES if p in set(controls.loc[controls["target"] == controlled, "projector"])]
    batch_ref = int(cells["batch_ref"].iloc[0])
    with paper():
        figure = Figure(figsize=(PAGE, 3.4), layout="constrained")
        all_axes = list(figure.subplots(1, len(projectors), sharey=True, squeeze=False)[0])
        floored = False
        for axes, letter, projector in zip(all_axes, "abc", projectors, strict=False):
            keys = _chosen(cells, projector, controlled)
            panel(axes, cells, keys, GSNR, targets, batch_ref)
            own = [key for key in keys if key[1] == "none" and rows_of(cells, key)["floor"].notna().any()]
            if own:
                floor_band(axes, cells, own, batch_ref)
                floored = True
            axes.set_title(f"({letter}) {TITLES[projector]}:\n{_said(cells, keys)}", loc="left", fontweight="bold")
            axes.set_ylabel(f"{batch_ref} $\\times$ G-SNR")
            legend_below(axes, 2)
        symlog(all_axes)
        legend_of_signs(figure, cells, "floor: the highest control" if floored else "", 4)
    return figure
