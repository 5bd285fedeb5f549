"""Fig. 2 of the AHPA paper, with intervals and controls."""

from __future__ import annotations

from string import ascii_lowercase

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures._curves import (
    ABOVE_FLOOR,
    GSNR,
    floor_band,
    grid,
    keys_of,
    legend_below,
    legend_of_signs,
    less_floor,
    panel,
    rows_of,
    single,
    symlog,
)
from gsnr.figures.style import COLUMN, PAGE, paper
from gsnr.figures.targets import Key, Targets

TABLE = "alignment"
TITLE = "How far each target's alignment gradient stands above its floor, over t (AHPA Fig. 2)"
CAPTION = (
    "G-SNR of a batch of B images, B x G-SNR, less the floor: what the controls of the same target reach (targets of other images). Shaded in "
    "colour: the 95 % interval of a bin; in grey: that of the floor. Open markers: not detected, or not above the floor by a paired test on the "
    "same images, times and noise; crossed: the projector reaches less than a constant. Where there is no floor, G-SNR itself is drawn, and full "
    "markers are detected. Projectors are fitted alike unless a panel says otherwise: "
    "with the checkpoint's own, the G-SNR itself is drawn beside its floor. The axis is linear up to 10 and logarithmic beyond."
)
COLUMNS = 3
TEACHER = ("repa", "irepa", "rare", "gram", "attention", "pooled_vlm", "pooled_teacher")
OWN = ("sra", "layersync", "sra2", "spare")  # states of the model, or the clean latent: no VAE layers either, as in Fig. 2(a)
LAYERS = ("uniform_G1", "uniform_G2", "uniform_mid", "uniform_deep", "rare_G4")  # one group of VAE layers each: Fig. 2(b)
MIXTURES = ("ahpa", "static", "heuristic", "uniform_both", "uniform_G1-G4")
MIXED = ("uniform_mid", "uniform_deep")  # shown beside the mixtures, too
FEW, MOST = 4, 6  # targets that need one panel only; curves that a panel holds
APART = {"ckpt": "the checkpoint's own projector", "fresh": "fresh projectors", "none": "no projector"}
FLOORLESS = "no floor is known"


def _kinds(true: list[Key]) -> dict[str, list[Key]]:
    """title -> targets with fitted projectors, by what they are made of, at most MOST together; each is in one of them at least."""
    if len(true) <= FEW:
        return {"projectors fitted alike": true}

    def named(*names: str) -> list[Key]:
        return [key for key in true if key[0] in names]

    kinds = {"targets outside the VAE": named(*TEACHER, *OWN)}
    if len(named(*TEACHER, *OWN)) > MOST:
        kinds = {"features of a teacher": named(*TEACHER), "own states or clean latent": named(*OWN)}
    kinds["groups of VAE layers"] = named(*LAYERS)
    if named(*MIXTURES):
        kinds["mixtures"] = named(*MIXTURES, *MIXED)
    kinds["other targets"] = [key for key in true if key[0] not in (*TEACHER, *OWN, *LAYERS, *MIXTURES)]
    return {title: keys for whole, all_keys in kinds.items() for title, keys in _cut(whole, all_keys).items()}


def _cut(title: str, keys: list[Key]) -> dict[str, list[Key]]:
    """In parts of about the same size, numbered where there are several."""
    if len(keys) <= MOST:
        return {title: keys}
    size = -(-len(keys) // -(-len(keys) // MOST))
    return {f"{title} ({i // size + 1})": keys[i : i + size] for i in range(0, len(keys), size)}


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


def _floorless_apart(panels: dict[str, list[Key]], cells: pd.DataFrame) -> dict[str, list[Key]]:
    """The same, but targets whose floor is not known have a panel of their own, where others have one: the latter are drawn less their floor."""
    known = {key for keys in panels.values() for key in keys if rows_of(cells, key)["floor"].notna().any()}
    kept, moved = {}, []
    for title, keys in panels.items():
        bare = [key for key in keys if key[1] == "none" and key not in known]
        if title in APART.values() or not known.intersection(keys):
            bare = []
        kept[title] = [key for key in keys if key not in bare]
        moved += bare
    return kept | ({FLOORLESS: list(dict.fromkeys(moved))} if moved else {})


def _panel(axes: Axes, cells: pd.DataFrame, keys: list[Key], targets: Targets, batch_ref: int, apart: bool) -> bool:
    """Draws true targets, less their floor where all have one; raw ones with their floor or their controls otherwise, and with a projector that was
    not fitted alike. Whether there is a floor in it."""
    true = [key for key in keys if key[1] == "none"]
    floored = [key for key in true if key[2] == keys[-1][2] and rows_of(cells, key)["floor"].notna().any()]
    less = floored == true and not apart
    shown = true if floored else keys
    panel(axes, cells, shown, ABOVE_FLOOR if less else GSNR, targets, batch_ref)
    axes.set_ylabel(f"{batch_ref} $\\times$ (G-SNR $-$ floor)" if less else f"{batch_ref} $\\times$ G-SNR")
    if floored:
        floor_band(axes, cells, floored, batch_ref, less)
    legend_below(axes, 2)
    return bool(floored)


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Raises ValueError for a table of several, or of controls alone."""
    targets, cells = Targets(cells), less_floor(single(cells))
    panels = _floorless_apart(panels_of(keys_of(cells)), cells)
    if not panels:
        raise ValueError("fig2_gsnr: the table has nothing but controls; measure a target beside them")
    batch_ref = int(cells["batch_ref"].iloc[0])
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with paper():
        figure = Figure(figsize=(COLUMN if columns == 1 else PAGE, 0.5 + 2.6 * rows), layout="constrained")
        all_axes = grid(figure, len(panels), columns)
        floors = []
        for axes, letter, (title, keys) in zip(all_axes, ascii_lowercase, panels.items(), strict=False):
            floors.append(_panel(axes, cells, keys, targets, batch_ref, title in APART.values()))
            axes.set_title(f"({letter}) {title}", loc="left")
            axes.tick_params(labelbottom=True)
        symlog([axes for axes, title in zip(all_axes, panels, strict=True) if title != APART["none"]])
        symlog([axes for axes, title in zip(all_axes, panels, strict=True) if title == APART["none"]])
        legend_of_signs(figure, cells, "floor: what controls reach, and its interval" if any(floors) else "", 2 if columns > 1 else 1)
    return figure
