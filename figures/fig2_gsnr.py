"""Fig. 2 of the AHPA paper, with intervals and controls."""

from __future__ import annotations

from string import ascii_lowercase

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import GSNR, floor_band, grid, keys_of, panel, rows_of, single
from gsnr.figures.style import COLUMN, PAGE, paper
from gsnr.figures.targets import Key, Targets

TABLE = "alignment"
TITLE = "G-SNR of the alignment gradient over t, per target (AHPA Fig. 2)"
CAPTION = (
    "B x G-SNR with 95 % intervals. Shaded: the floor, what controls reach, with its interval (the same targets of other images; with the "
    "checkpoint's own projector a constant vector, too). Open markers: not detected, or not above the floor on the same images, times and noise; "
    "crossed: the projector reaches less than a constant. Projectors are fitted alike unless a panel says otherwise. fig_controls shows each control."
)
FIXED = ("repa", "irepa", "sra", "sra2")  # targets that are no VAE layers: Fig. 2(a)
LAYERS = ("uniform_G1", "uniform_G2", "uniform_mid", "uniform_deep")  # one group of VAE layers each: Fig. 2(b)
MIXTURES = ("ahpa", "static", "heuristic", "uniform_both", "uniform_G1-G4")
MIXED = ("uniform_mid", "uniform_deep")  # shown beside the mixtures, too
FEW, MOST = 4, 7  # targets that need one panel only; curves in a panel of others
APART = {"ckpt": "the checkpoint's own projector", "fresh": "fresh projectors", "none": "no projector"}


def _kinds(true: list[Key]) -> dict[str, list[Key]]:
    """title -> targets with fitted projectors, by what they are made of; each is in one of them at least."""
    if len(true) <= FEW:
        return {"projectors fitted alike": true}

    def named(names: tuple[str, ...]) -> list[Key]:
        return [key for key in true if key[0] in names]

    kinds = {"targets beside the VAE's layers": named(FIXED), "groups of VAE layers": named(LAYERS)}
    if named(MIXTURES):
        kinds["mixtures"] = named((*MIXTURES, *MIXED))
    others = [key for key in true if key[0] not in (*FIXED, *LAYERS, *MIXTURES)]
    for i in range(0, len(others), MOST):
        kinds[f"other targets ({i // MOST + 1})" if len(others) > MOST else "other targets"] = others[i : i + MOST]
    return kinds


def panels_of(keys: list[Key]) -> dict[str, list[Key]]:
    """title -> what is drawn together. Every target of the keys is in some panel, and the shuffled control in each: that of the panel's own targets,
    or else of the first target that has one. Constant controls are left out."""
    keys = [key for key in keys if key[1] != "constant"]
    fitted = [key for key in keys if key[2] not in APART]
    true, controls = [key for key in fitted if key[1] == "none"], [key for key in fitted if key[1] != "none"]
    panels = {}
    for title, some in _kinds(true).items():
        names = {target for target, _, _ in some}
        own = [key for key in controls if key[0] in names]
        if some:
            panels[title] = [*some, *(own or [key for key in controls if key[0] == controls[0][0]])]
    for projector, title in APART.items():
        apart = [key for key in keys if key[2] == projector]
        if apart:
            panels[title] = [*(key for key in true if key[0] in {target for target, _, _ in apart}), *apart]
    return panels


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Raises ValueError for a table of several, or of controls alone."""
    targets, cells = Targets(cells), single(cells)
    panels = panels_of(keys_of(cells))
    if not panels:
        raise ValueError("fig2_gsnr: the table has nothing but controls; measure a target beside them")
    batch_ref = int(cells["batch_ref"].iloc[0])
    columns = 2 if len(panels) > 2 else 1
    rows = -(-len(panels) // columns)
    with paper():
        figure = Figure(figsize=(PAGE if columns == 2 else COLUMN, 2.3 * rows), layout="constrained")
        all_axes = grid(figure, len(panels), columns)
        for axes, letter, (title, keys) in zip(all_axes, ascii_lowercase, panels.items(), strict=False):
            floored = [key for key in keys if key[1] == "none" and key[2] == keys[-1][2] and rows_of(cells, key)["floor"].notna().any()]
            ncols = panel(axes, cells, [key for key in keys if key[1] == "none" or not floored], GSNR, targets, batch_ref)
            if floored:
                floor_band(axes, cells, floored, batch_ref, ncols)
            axes.set_title(f"({letter}) {title}", loc="left")
            axes.set_ylabel(f"{batch_ref} $\\times$ G-SNR")
    return figure
