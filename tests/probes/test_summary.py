"""What the probe command prints at its end, to the letter."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gsnr.probes.common import summary


def cells(**attrs: dict) -> pd.DataFrame:
    rows = [
        {"target": target, "control": control, "bin": index, "t_low": low, "t_high": low + 0.5, "gsnr": value, "gsnr_low": value - 0.01}
        for target, control, values in (("ahpa", "none", (0.5, 0.05)), ("uniform_mid", "none", (0.25, 1.0)), ("ahpa", "shuffled", (0.0, 0.0)))
        for index, (low, value) in enumerate(zip((0.0, 0.5), values, strict=True))
    ]
    frame = pd.DataFrame(rows).assign(run="demo", checkpoint="0000400", group="all", projector="fit", n=24, batch_ref=256)
    frame = frame.assign(gsnr_high=frame["gsnr"] + 0.01, below_detection=frame["gsnr"] < 0.01, underfit=frame["gsnr"] == 0.25)
    floor = np.where(frame["control"] == "none", 0.1, np.nan)
    frame = frame.assign(floor=floor, floor_low=floor - 0.01, floor_high=floor + 0.01, above_floor=frame["gsnr"] > floor)
    frame.attrs |= attrs
    return frame


def test_the_table() -> None:
    assert summary.summary(cells(labels={"ahpa": "AHPA"})).splitlines() == [
        "256 x G-SNR of group 'all', n = 24, 95 % interval; floor: the first target's controls",
        "'.' below detection; '-' detected, but not above its floor; 'u' the projector reaches less than a constant",
        "          t                      AHPA               uniform mid                  floor",
        "  0.00-0.50  128.00 [125.44, 130.56]      64.00 [61.44, 66.56]u  25.60 [23.04, 28.16] ",
        "  0.50-1.00     12.80 [10.24, 15.36]-  256.00 [253.44, 258.56]   25.60 [23.04, 28.16] ",
    ]


def test_names_without_labels_and_of_several_runs() -> None:
    several = pd.concat([cells(), cells().assign(run="other")])
    head = summary.summary(several).splitlines()[2]
    assert "demo/0000400: ahpa  " in head and "other/0000400: uniform mid  " in head


def test_easy_targets() -> None:
    rows = cells(labels={"ahpa": "AHPA"}).assign(metric="constant_share", value=lambda frame: frame["gsnr"] * 2)
    assert summary.easy(rows).splitlines() == [
        "easy targets, of whose projector's cosine a constant vector reaches 90% or more:",
        "  AHPA at t = 0.00-0.50",
        "  uniform mid at t = 0.50-1.00",
    ]
    assert summary.easy(rows[rows["control"] == "shuffled"]) == ""


def test_what_is_read_best_beside_the_router() -> None:
    """Two bins, two parts; the second run has no router."""
    about = {"run": "demo", "checkpoint": "0000400", "metric": "predicted_weight"}
    rows = [
        about | {"target": target, "group": group, "value": value, "low": low, "t_low": t, "t_high": t + 0.5}
        for t in (0.0, 0.5)
        for target, group, value, low in (
            ("alpha_deep", "14:a", 0, 0),
            ("alpha_deep", "15:b", 1, t * 2),
            ("beta", "deep", 1, 1),
            ("beta", "mid", 0, 0),
        )
    ]
    trained = [row | {"metric": "router_weight", "value": 0.75 if row["value"] else 0.25} for row in rows]
    head = "what a linear reader reads best (?: not resolved from another) | what the router weighs most, at the middle of the bin:"
    assert summary.readable(pd.DataFrame(rows + trained)).splitlines() == [
        head,
        "                         beta        alpha deep",
        "  0.00-0.50  deep | deep 0.75     15? | 15 0.75",
        "  0.50-1.00  deep | deep 0.75      15 | 15 0.75",
    ]
    several = pd.DataFrame(rows).assign(run="other")
    lines = summary.readable(pd.concat([pd.DataFrame(rows + trained), several])).splitlines()
    assert lines[1].startswith("demo/0000400:") and lines[4].startswith("other/0000400:")
    assert lines[5].split() == ["0.00-0.50", "deep", "15?"]
    assert summary.readable(pd.DataFrame(trained)) == ""


def test_fits_that_were_cut_short_are_named() -> None:
    fits = {name: {"steps": 40, "loss": 0.25, "converged": done} for name, done in (("ahpa", True), ("repa [shuffled]", False))}
    said = summary.unconverged({"checkpoints": [{"run": "demo", "notes": {"projector_fit": fits}}, {"run": "other", "notes": {}}]})
    assert said.splitlines()[1:] == ["  demo: repa [shuffled] (40 steps, loss 0.250)"]
    assert summary.unconverged({"checkpoints": [{"run": "demo", "notes": {"projector_fit": {"ahpa": fits["ahpa"]}}}]}) == ""
