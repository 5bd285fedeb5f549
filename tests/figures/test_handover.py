"""What fig_handover reads off a router's log, on curves made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gsnr.figures import fig_handover

TIMES = np.linspace(0, 1, 11)


def table(run: str, deep_of: dict[int, np.ndarray]) -> pd.DataFrame:
    rows = [(run, step, t, b) for step, curve in deep_of.items() for t, b in zip(TIMES, curve, strict=True)]
    frame = pd.DataFrame(rows, columns=["run", "step", "t_low", "value"])
    return frame.assign(target="router_log", metric="beta", group="deep")


def test_a_transient_and_a_handover_told_apart() -> None:
    flat, tilted, deep = np.full(11, 0.5), 0.1 + 0.8 * TIMES, np.ones(11)
    transient = table("transient", {0: flat, 150: flat, 155: tilted, 250: deep, 300: deep})
    handover = table("handover", {0: flat, 150: flat, 250: tilted, 300: tilted + 0.01})
    still = table("still", {0: flat, 300: flat})
    said = fig_handover.verdicts(pd.concat([transient, handover, still])).set_index("run")
    assert list(said.index) == ["transient", "handover", "still"] and set(said["step"]) == {300}
    assert said["difference"].tolist() == pytest.approx([0, 0.64, 0]) and said["largest"].tolist() == pytest.approx([0.64, 0.64, 0])
    assert said.loc["transient", "largest_at"] == 155
    assert said["moving"].tolist() == pytest.approx([0, 0.01, 0])
    assert said["slope"].tolist() == pytest.approx([0, 0.51 * 0.49, 0.25])
    assert said.loc["handover", ["low_t", "high_t"]].tolist() == pytest.approx([0.19, 0.83])
    curves = fig_handover.curves(pd.concat([transient, handover, still]))
    assert [fig_handover.released(curves[run]) for run in said.index] == [150, 150, 300]
    assert fig_handover.released(curves["transient"].loc[:150]) == 150


def test_too_many_runs_are_refused() -> None:
    many = pd.concat([table(f"run{i}", {0: np.zeros(11)}) for i in range(25)])
    with pytest.raises(ValueError, match="fig_handover: 25 runs, and room for 24; name fewer with --run"):
        fig_handover.draw(many)
