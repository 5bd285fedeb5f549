"""What the paper says, held against tables made for the purpose: a sentence says what paired intervals allow, and no more."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gsnr import Estimate, table
from gsnr.figures import claims, notebook

N, BINS = 64, 4
Frames = tuple[pd.DataFrame, pd.DataFrame]


def measured(**levels: list[float]) -> Frames:
    """target -> mean of each of its bins: cells and samples of one-dimensional gradients with unit noise, the same for all targets."""
    noise = np.random.default_rng(0).standard_normal((BINS, N))
    noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)
    cells, samples = [], []
    for target, means in levels.items():
        for b, mean in enumerate(means):
            g = mean + noise[b]
            q, r = g**2, g * g.sum()
            run = {"run": "r", "checkpoint": "1", "vae": "v", "target": target, "control": "none", "projector": "fit", "group": "all", "bin": b}
            edges = {"t_low": b / BINS, "t_high": (b + 1) / BINS}
            cells.append(run | edges | {"floor": np.nan} | table.estimate_columns(Estimate(group="all", q_n=q, r_n=r, sum_sq=r.sum(), cov_sq=1.0), 1))
            samples += [run | {"image_id": i, "q": q[i], "r": r[i]} for i in range(N)]
    return pd.DataFrame(cells), pd.DataFrame(samples)


def test_a_crossing_is_said_where_both_halves_show_it() -> None:
    low_to_high = {"uniform_mid": [2.0, 2.0, 1.0, 1.0], "uniform_deep": [1.0, 1.0, 2.0, 2.0]}
    said = claims.crossing(*measured(**low_to_high))
    assert (
        "At t > 0.5, uniform deep is ahead" in said and "At t < 0.5, uniform mid is ahead" in said and said.endswith("They cross, as the paper says.")
    )
    same = claims.crossing(*measured(uniform_mid=[1.0] * 4, uniform_deep=[1.0] * 4))
    assert same.count("neither is ahead") == 2 and same.endswith("That is not the crossing of the paper.")
    assert claims.crossing(*measured(uniform_mid=[1.0] * 4)) == "Not measured in this run: uniform deep."


def test_a_collapse_is_near_the_data() -> None:
    said = claims.collapse(*measured(repa=[0.2, 0.2, 2.0, 2.0], sra2=[2.0, 2.0, 0.2, 0.2])).splitlines()
    assert said[0].startswith("REPA: ") and said[0].endswith("less near the data, as the paper says.")
    assert said[1].startswith("SRA 2: ") and said[1].endswith("more near the data, the other way.")
    assert claims.collapse(*measured(repa=[1.0] * 4)).splitlines()[0].endswith("no difference is resolved.")


def test_a_part_ahead_of_the_mixture_is_named() -> None:
    said = claims.envelope(*measured(ahpa=[1.0] * 4, uniform_mid=[2.0, 2.0, 1.0, 1.0], uniform_deep=[1.0] * 4))
    assert said.startswith("Ahead of AHPA, paired by image: uniform mid at t < 0.5 (by ") and "uniform deep" not in said
    assert "no contradiction" in claims.envelope(*measured(ahpa=[2.0] * 4, uniform_mid=[1.0] * 4, uniform_deep=[2.0] * 4))


def logged(*curves: tuple[int, float, float]) -> pd.DataFrame:
    """(step, beta deep at t = 0.1, at t = 0.9) as a table `router` holds them."""
    fixed = {"run": "r", "target": "router_log", "metric": "beta", "group": "deep"}
    return pd.DataFrame([fixed | {"step": s, "t_low": t, "value": v} for s, low, high in curves for t, v in ((0.1, low), (0.9, high))])


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ((0.2, 0.7), "A handover, in the paper's direction, if another rate"),
        ((0.7, 0.2), "A handover, against the paper's direction"),
        ((0.5, 0.6), "No handover, at rest or on the way"),
        ((1.0, 1.0), "Stuck, no verdict"),
    ],
)
def test_handover(last: tuple[float, float], says: str) -> None:
    """By the rule of docs/handover.md."""
    steps = [(0, 0.5, 0.5), *((step, *last) for step in (100, 150, 200))]
    assert claims.handover(logged(*steps)).startswith(f"r: {says}")


def test_no_handover_but_a_transient_and_a_router_still_moving() -> None:
    assert "transient" in claims.handover(logged((0, 0.5, 0.5), (50, 0.5, 0.9), (150, 0.98, 0.99), (200, 0.98, 0.99)))
    assert "not known to be at rest (moved by 0.20" in claims.handover(logged((0, 0.5, 0.5), (150, 0.2, 0.5), (200, 0.2, 0.7)))
    assert claims.handover(logged()[:0].assign(target="", metric="", group="")).startswith("No verdict: ")


def test_tables_of_a_notebook_keep_to_one_line_and_to_display_names() -> None:
    cells, _ = measured(repa=[1.0] * 4)
    shown = notebook.by_bin(cells.assign(above_floor=False))
    assert list(shown.columns) == ["t", "REPA"] and shown["t"].tolist()[0] == "0 to 0.25"
    text = notebook.laid_out(shown).to_html()
    assert "white-space: nowrap" in text and "text-align: right" in text
