"""Targets look and are called the same everywhere, whoever wrote them, and no two are alike."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gsnr import table
from gsnr.figures import _examples, command, fig2_gsnr, fig_blocks, fig_controls, fig_direction, fig_methods, tables
from gsnr.figures.targets import FREE, KNOWN, Targets, looks
from tests.figures.made import cells_of

MINE = [f"of_mine_{i}" for i in range(20)]


def drawn(figure: Figure) -> dict[str, set[tuple[str, str, str]]]:
    """label -> (colour, marker, line) of every legend of the figure."""
    found: dict[str, set[tuple[str, str, str]]] = {}
    for axes in figure.axes:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            assert isinstance(line, Line2D)
            found.setdefault(label, set()).add((to_hex(line.get_color()), str(line.get_marker()), str(line.get_linestyle())))
    return found


def test_no_two_targets_look_alike() -> None:
    names = ("ahpa", "static", "heuristic", "repa", "irepa", "sra", "sra2", "denoising")
    uniform = (f"uniform_{source}" for source in ("G1", "G2", "mid", "deep", "both", "G1-G4"))
    assert {*names, *uniform} <= KNOWN.keys()
    many = looks([*KNOWN, *(f"another_{i}" for i in range(len(FREE)))])
    assert len(set(many.values())) == len(many) >= 60
    assert {name: many[name] for name in KNOWN} == KNOWN, "the known keep theirs"
    assert looks(reversed(MINE)) == looks(MINE), "whatever the order"
    with pytest.raises(ValueError, match=f"has {len(FREE) + 1} targets beside the known ones, and there are looks for {len(FREE)}"):
        looks(f"another_{i}" for i in range(len(FREE) + 1))


def test_controls_are_told_apart() -> None:
    keys = [(t, c, "fit") for t, c in product(("ahpa", "repa", *MINE[:6]), ("none", "shuffled", "shuffled_class", "constant", "of_another_kind"))]
    targets = Targets(cells_of(keys))
    seen = {(style["color"], style["marker"], style["ls"]) for style in map(targets.style, keys)}
    assert len(seen) == len(keys)
    first = Targets(cells_of([("repa", "none", "fit"), ("repa", "shuffled", "fit"), ("repa", "constant", "fit")]))
    assert first.style(("repa", "shuffled", "fit")) == {"color": "#666666", "marker": "P", "ls": ":"}
    assert first.style(("repa", "constant", "fit")) == {"color": "#999999", "marker": "X", "ls": "-."}


def test_projectors_are_told_apart() -> None:
    targets = Targets(cells_of([("ahpa", "none", "fit")]))
    fit, ckpt, fresh = (targets.style(("ahpa", "none", projector)) for projector in ("fit", "ckpt", "fresh"))
    assert fit | {"ls": "--"} == ckpt and fresh["ls"] not in (fit["ls"], ckpt["ls"])


@pytest.mark.parametrize("few", [True, False])
def test_every_target_is_drawn_in_some_panel(few: bool) -> None:
    """Known or not, few or many, with any projector; and a target looks the same in all panels and figures."""
    names = ["ahpa", *MINE[:2]] if few else [*KNOWN, *MINE]
    keys = [(name, "none", "fit") for name in names] + [("ahpa", "shuffled", "fit"), ("ahpa", "constant", "fit"), (MINE[0], "none", "ckpt")]
    keys += [(MINE[1], "none", "fresh"), ("only_fresh", "none", "fresh"), ("without", "none", "none")]
    panels = fig2_gsnr.panels_of(keys)
    assert {key for some in panels.values() for key in some} == {key for key in keys if key[1] != "constant"}
    assert all(("ahpa", "shuffled", "fit") in some for title, some in panels.items() if title not in fig2_gsnr.APART.values())
    cells = cells_of(keys)
    targets = Targets(cells)
    everywhere: dict[str, set] = {}
    for figure in (fig2_gsnr, fig_controls):
        for label, styles in drawn(figure.draw(cells)).items():
            everywhere.setdefault(label, set()).update(styles)
    for name in names:
        assert {(colour, marker) for colour, marker, _ in everywhere[targets.name((name, "none", "fit"))]} == {
            (to_hex(colour), marker) for colour, marker in [targets.looks[name]]
        }
    rows = [text.get_text() for text in fig_direction.draw(cells).axes[0].get_yticklabels()]
    assert len(set(rows)) == len(rows) and set(rows) >= {targets.name((name, "none", "fit")) for name in names}
    titles = {axes.get_title(loc="left") for axes in fig_blocks.draw(cells).axes}
    assert titles >= {targets.name((name, "none", "fit")) for name in names}


def test_a_panel_holds_six_curves_at_most() -> None:
    outside = ("repa", "irepa", "rare", "gram", "sra", "sra2")
    panels = fig2_gsnr.panels_of([(name, "none", "fit") for name in outside])
    assert [len(some) for some in panels.values()] == [6] and list(panels) == ["targets outside the VAE"]
    panels = fig2_gsnr.panels_of([(name, "none", "fit") for name in (*outside, "pooled_teacher", *MINE)])
    assert [len(some) for some in panels.values()] == [5, 2, 5, 5, 5, 5]
    assert [name for name, _, _ in panels["own states or clean latent"]] == ["sra", "sra2"] and "other targets (4)" in panels


def test_targets_without_a_floor_or_a_projector_stand_apart() -> None:
    """So that the others are drawn less their floor, on an axis that does not reach to the G-SNR of another kind of loss."""
    keys = [(name, control, "fit") for name in ("repa", "gram", "pooled_teacher") for control in ("none", "shuffled")]
    cells = cells_of([*keys, ("layersync", "none", "none")])
    cells.loc[cells["target"].isin(("pooled_teacher", "layersync")), ["floor", "floor_low", "floor_high"]] = float("nan")
    large = cells["projector"] == "none"
    for column in ("gsnr", "gsnr_low", "gsnr_high"):
        cells.loc[large, column] = 30.0
    panels = {axes.get_title(loc="left")[4:]: axes for axes in fig2_gsnr.draw(cells).axes}
    assert list(panels) == ["projectors fitted alike", "no projector", fig2_gsnr.FLOORLESS]
    assert ["floor" in axes.get_ylabel() for axes in panels.values()] == [True, False, False]
    fitted, alone, floorless = (axes.get_ylim() for axes in panels.values())
    assert fitted == floorless and fitted[1] < 1000 < 256 * 30 < alone[1]


def test_controls_stand_beside_their_targets() -> None:
    keys = [(name, control, "fit") for name in ("repa", "sra", "ahpa", "uniform_both", "of_mine") for control in ("none", "shuffled")]
    panels = fig2_gsnr.panels_of(keys)
    assert panels["other targets"] == [("of_mine", "none", "fit"), ("of_mine", "shuffled", "fit")]
    assert ("sra", "shuffled", "fit") in panels["targets outside the VAE"]


def test_runs_of_one_target_are_told_apart() -> None:
    """Seven runs of it, which is all that the figure takes; the first looks as everywhere."""
    runs = pd.concat([cells_of([("ahpa" if i else "repa", "none", "fit")], f"run{i}") for i in range(7)], ignore_index=True)
    looks_of_runs = drawn(fig_methods.draw(runs))
    assert len(looks_of_runs) == 7
    seen = [(colour, marker) for styles in looks_of_runs.values() for colour, marker, _ in styles]
    assert len(set(seen)) == 7
    assert {(to_hex(c), m) for c, m in (KNOWN["ahpa"], KNOWN["repa"])} <= set(seen)
    assert {colour for colour, _ in seen[1:]} == {to_hex(KNOWN["ahpa"][0])}


def test_labels(tmp_path: Path) -> None:
    """A table's labels count most, then ours, then the name; those of several runs are merged."""
    assert table.target_name("of_mine", "shuffled", "fit") == "of mine, shuffled"
    assert table.target_name("of_mine", "none", "ckpt", labels={"of_mine": "Mine"}) == "Mine, own projector"
    rows, samples = (_examples.EXAMPLES[f"alignment{kind}"]("one", "alignment") for kind in ("", ".samples"))
    for run, labels in (("one", {"repa": "REPA*"}), ("other", {"repa": "else", _examples.STRANGER: "Mine"}), ("none", None)):
        provenance = {"labels": labels} if labels is not None else {}
        table.write(tmp_path / run / "alignment.parquet", "cells", [row | {"run": run} for row in rows], provenance)
        table.write(tmp_path / run / "alignment.samples.parquet", "samples", [row | {"run": run} for row in samples], provenance)
    assert table.read(tmp_path / "none" / "alignment.parquet").attrs["labels"] == {}
    together = command.table_of([tmp_path / "none", tmp_path / "one", tmp_path / "other"], fig_methods)
    assert together.attrs["labels"] == {"repa": "REPA*", _examples.STRANGER: "Mine"}
    named = drawn(fig2_gsnr.draw(command.table_of([tmp_path / "other"], fig2_gsnr)))
    assert {"else", "Mine", "AHPA", "uniform mid"} <= named.keys()
    assert "AHPA, shuffled" in drawn(fig_controls.draw(command.table_of([tmp_path / "other"], fig_controls)))
    assert {"none: AHPA", "one: AHPA", "other: AHPA"} == drawn(fig_methods.draw(together)).keys()
    _, found = tables.measured(tmp_path / "other", "alignment", "all")
    assert {"else", "Mine", "AHPA", "uniform mid", "AHPA, shuffled"} <= set(found["name"])


def test_a_figure_without_its_constants_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fig_half_made.py"
    path.write_text("def draw(table):\n    pass\n")
    monkeypatch.setenv("GSNR_PLUGINS", str(path))
    with pytest.raises(ValueError, match=r"fig_half_made.py: has no text TABLE; a figure has TABLE, TITLE, CAPTION and draw"):
        command.find("fig_half_made")
