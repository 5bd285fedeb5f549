"""What figures show, read off the drawn axes and held against the table by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

from gsnr import table
from gsnr.figures import _examples, command, fig2_gsnr, fig4_pca, fig5_router, fig_controls, fig_direction, fig_easy, fig_representation, style
from gsnr.figures._maps import as_text
from tests.figures.made import cells_of

FIT, SHUFFLED = ("ahpa", "none", "fit"), ("ahpa", "shuffled", "fit")


def example(probe: str) -> pd.DataFrame:
    return pd.DataFrame(_examples.EXAMPLES[probe]("run", probe))


def lines(axes: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.get_lines()}


def boxes(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def hatched(axes: Axes) -> int:
    """Cells of a heat map below a hatch."""
    return sum(len(c.get_paths()) for c in axes.collections if isinstance(c, PolyCollection) and c.get_hatch())


def test_fig2_shows_the_difference_to_the_floor() -> None:
    cells = cells_of([FIT, SHUFFLED]).assign(floor=0.02, floor_low=0.01, floor_high=0.04, above_floor=[True, False, True, False] * 16)
    one = cells[(cells["group"] == "all") & (cells["control"] == "none")]
    axes = fig2_gsnr.draw(cells).axes[0]
    assert "floor" in axes.get_ylabel() and axes.get_yscale() == "symlog"
    assert lines(axes)["AHPA"] == pytest.approx(256 * (one["gsnr"] - 0.02).to_numpy())
    opened = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    assert [len(np.asarray(line.get_xdata())) for line in opened] == [int((one["below_detection"] | ~one["above_floor"]).sum())]
    bars = {(round(p.get_y(), 6), round(p.get_height(), 6)) for p in boxes(axes)}
    assert (round(-256 * 0.01, 6), round(256 * 0.03, 6)) in bars, "the floor's interval, about 0"
    first = one.iloc[0]
    assert (round(256 * (first["gsnr_low"] - 0.02), 6), round(256 * (first["gsnr_high"] - first["gsnr_low"]), 6)) in bars
    raw = fig2_gsnr.draw(cells.assign(floor=np.nan, floor_low=np.nan, floor_high=np.nan, above_floor=False)).axes[0]
    assert "floor" not in raw.get_ylabel() and lines(raw)["AHPA"] == pytest.approx(256 * one["gsnr"].to_numpy())
    assert "AHPA, shuffled" in lines(raw), "without a floor the control itself is drawn"


def test_three_kinds_stand_in_one_row() -> None:
    cells = cells_of([(t, c, "fit") for t in ("repa", "sra", "uniform_mid", "uniform_G1", "ahpa") for c in ("none", "shuffled")])
    drawn = fig2_gsnr.draw(cells)
    assert len({round(axes.get_position().y0, 6) for axes in drawn.axes}) == 1 and len(drawn.axes) == 3
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in drawn.axes)
    assert drawn.get_figwidth() == style.PAGE


def test_fig_controls_counts_the_bins_in_which_a_control_has_signal() -> None:
    cells = cells_of([FIT, SHUFFLED, ("ahpa", "none", "ckpt"), ("ahpa", "shuffled", "ckpt")])
    control = (cells["control"] == "shuffled") & (cells["group"] == "all")
    cells.loc[control, "below_detection"] = (cells["projector"] == "fit") | (cells["bin"] == 1)
    titles = [axes.get_title(loc="left") for axes in fig_controls.draw(cells).axes]
    assert [title.rpartition(": ")[2] for title in titles] == ["signal in 0 of 4 bins", "signal in 3 of 4 bins"]


def test_fig_direction_says_nothing_where_nothing_is_resolved() -> None:
    cells = cells_of([FIT]).assign(below_detection=False, above_floor=True, cos_denoise=0.9, cos_low=0.7, cos_high=1.1)
    cells.loc[cells["bin"] == 0, "below_detection"] = True
    cells.loc[cells["bin"] == 1, "above_floor"] = False
    cells.loc[cells["bin"] == 2, ["cos_low", "cos_high"]] = -1.5, 1.5
    left = fig_direction.draw(cells).axes[0]
    assert hatched(left) == 3 and [text.get_text() for text in left.texts] == ["", "", "", "+.90"]
    (beyond,) = [line for line in left.get_lines() if line.get_marker() == "^"]
    (place,) = np.asarray(beyond.get_xdata())
    assert 0.75 < place < 1
    assert left.texts[-1].get_fontweight() == "bold"


def test_numbers_of_a_heat_map() -> None:
    value = np.array([[-0.224, 0.0, 1.0, np.nan, 0.95, -0.001, 10.4]])
    assert as_text(value, "+.2f").tolist() == [["\N{MINUS SIGN}.22", "0", "+1.00", "", "+.95", "0", "+10.40"]]


def test_large_numbers_fit_into_their_cells() -> None:
    cells = cells_of([FIT]).assign(below_detection=False, above_floor=True, cos_denoise=0.9, cos_low=0.8, cos_high=0.95)
    cells["gsnr_constructive"] = cells["bin"].map({0: -1346.6, 1: 47.2, 2: -0.42, 3: 9.96}) / 256
    right = fig_direction.draw(cells).axes[1]
    assert [text.get_text().replace("\N{MINUS SIGN}", "-") for text in right.texts] == ["-1.3k", "+47", "-.4", "+10"]


def test_fig_representation_hatches_what_knowing_nothing_gives() -> None:
    rows = example("representation")  # knowing nothing gives 0.1 +- 0.05; block k has 0.2 k
    first = (rows["control"] == "none") & (rows["group"] == "block 1")
    for low, expected in ((0.14, [4, 4]), (0.16, [0, 0])):
        drawn = fig_representation.draw(rows.assign(low=rows["low"].mask(first, low)))
        assert [hatched(axes) for axes in drawn.axes[:2]] == expected, "block 1 in 4 bins"


def test_fig5_has_a_row_a_group_and_layer() -> None:
    left, middle, right = fig5_router.draw(example("router")).axes[:3]
    rows = [text.get_text() for text in left.get_yticklabels()]
    assert rows[:2] == [r"$\beta$ mid", r"$\beta$ deep"] and len(rows) == 2 + sum(map(len, _examples.LAYERS.values()))
    over_t, over_steps = (np.asarray(axes.collections[0].get_array()).reshape(len(rows), -1) for axes in (left, middle))
    assert over_t[0] == pytest.approx(0.5 + 0.4 * np.linspace(0, 1, 5)) and over_t[1] == pytest.approx(1 - over_t[0])
    assert over_steps.shape == (len(rows), 3) and over_steps[0] == pytest.approx(0.7)
    assert {"t = 0.00", "t = 0.50", "t = 1.00"} == {str(line.get_label()) for line in right.get_lines() if str(line.get_label()).startswith("t")}


def test_fig_easy_has_a_bar_a_layer() -> None:
    axes = fig_easy.draw(example("controls")).axes[0]
    coloured, black = [p for p in boxes(axes) if p.get_facecolor()[:3] != (0, 0, 0)], [p for p in boxes(axes) if p.get_facecolor()[:3] == (0, 0, 0)]
    assert [p.get_height() for p in coloured] == [0.4] * 5
    assert np.nan_to_num([p.get_height() for p in black]).tolist() == [0.25] * 4 + [0.0], "a layer that is not offered has no weight"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["8", "9", "12", "13", "a_group"]


def test_fig4_says_how_much_variance_it_shows(tmp_path: Path) -> None:
    maps = tmp_path / "run" / "probes" / "vae_pca.maps.parquet"
    table.write(maps, "maps", _examples.EXAMPLES["vae_pca.maps"]("run", "vae_pca"), {})
    alone = [axes.get_title() for axes in fig4_pca.draw(command.table_of([tmp_path / "run"], fig4_pca)).axes[:3]]
    table.write(maps.with_name("vae_pca.parquet"), "metrics", _examples.EXAMPLES["vae_pca"]("run", "vae_pca"), {})
    heads = [axes.get_title() for axes in fig4_pca.draw(command.table_of([tmp_path / "run"], fig4_pca)).axes[:3]]
    assert [head.splitlines()[0] for head in heads] == [head.splitlines()[0] for head in alone] == ["reconstruction", "G1", "a_group"]
    assert heads[1] == "G1\n73 % of variance"  # 0.4 (1 + 1/2 + 1/3)


def test_an_svg_is_the_same_whenever_it_is_drawn(tmp_path: Path) -> None:
    for name in ("one", "two"):
        style.save(fig_direction.draw(cells_of([FIT])), [tmp_path / f"{name}.svg"])
    one, two = ((tmp_path / f"{name}.svg").read_bytes() for name in ("one", "two"))
    assert one == two and b"<svg" in one
