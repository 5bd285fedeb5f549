"""Figures and sentences of the residual stream, and the table of the routing runs, against made-up tables and sums by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gsnr.figures import _examples, _sublayers, claims, fig_gates, fig_routes, fig_stream
from tests.benchmarks import routed


def example() -> pd.DataFrame:
    return pd.DataFrame(_examples.EXAMPLES["residual_stream"]("run", "residual_stream"))


def test_maps_have_a_row_a_reader_and_chunks_over_their_sublayers() -> None:
    rows = example()
    weights = _sublayers.matrix(rows[rows["metric"] == fig_routes.WEIGHT], 2)
    third = 2 * np.array([1, 2, 3]) / 3 / 4  # attention 2 reads the embedding and chunk 1, MLP 2 attention 2 as well
    assert weights[3] == pytest.approx([third[0], third[1], third[1], third[2], np.nan], nan_ok=True)
    assert np.nansum(weights[2, [0, 1]]) == pytest.approx(1) and weights[2, 1] == weights[2, 2]
    gates = _sublayers.matrix(rows[rows["metric"] == fig_gates.METRIC], 2)[:-1, :-1]
    assert np.isnan(gates[np.triu_indices(4, 1)]).all() and gates[2] == pytest.approx([-0.15, -0.05, 0.05, np.nan], nan_ok=True)
    assert [_sublayers.number_of(name, 2) for name in ("embedding", "attention 1", "mlp 2", "final")] == [0, 1, 4, 5]


def test_curves_are_the_table() -> None:
    rows = example()
    axes = fig_stream.draw(rows).axes
    sizes = rows[rows["metric"] == "rms"].pivot(index="bin", columns="group", values="value").to_numpy()
    np.testing.assert_allclose([line.get_ydata() for line in axes[0].get_lines()], sizes)
    assert all(axes[i].get_yscale() == "log" for i in range(3)) and axes[3].get_yscale() == "linear"
    assert np.asarray(axes[5].get_lines()[0].get_ydata()).tolist() == pytest.approx([0.5, 0.7, 0.9])


def test_what_is_said_of_the_stream() -> None:
    rows = example()
    rows.loc[rows["metric"] == "rms", "value"] = rows["group"].map({"block 1": 2.0, "block 2": 5.0})
    said = claims.stream(rows).splitlines()
    assert said[0] == "RMS(z) of block 2 is 2.50 times that of block 1 (2.50 to 2.50 over t)."
    assert len(said) == 4 and claims.stream(rows[:0]).startswith("Not measured")


def test_budgets_by_hand() -> None:
    """Multiply-accumulates of the demo: 12 D^2 a token and block, attention's 2 T^2 D, adaLN's, embedders; 49 sources read, 13 queries."""
    width, wide, tokens, depth = 96, 100, 64, 6

    def plain(d: int) -> int:
        block = 12 * d * d * tokens + 2 * tokens**2 * d + 6 * d * d
        return depth * block + 2 * d * d + 2 * 4 * d * tokens + 256 * d + d * d

    mixed = 2 * 49 * tokens * width
    costs = {
        "sit": plain(width),
        "sit-plus": plain(wide),
        "dar-static": plain(width) + mixed,
        "dar-dynamic": plain(width) + mixed + 13 * tokens * width**2,
    }
    expected = {row: int(800 * costs["sit"] / cost) // 10 * 10 for row, cost in costs.items()}
    assert routed.budgets(800, 10) == expected | {"dar-static-t": expected["dar-static"]}


def test_differences_are_paired_by_seed() -> None:
    """d = .01, .02, .03: mean .02, standard error .01 / sqrt 3, t = 4.302653 for 95 %, and p of t = 3.4641 at two degrees of freedom."""
    lines = [{"row": row, "seed": s, "x": s + (row == "a") * 0.01 * (s + 1)} for row in ("a", "b") for s in (2, 0, 1)]
    mean, low, high, p = routed.paired(pd.DataFrame(lines), "x", "a", "b")
    half = 4.302653 * 0.01 / np.sqrt(3)
    assert (mean, low, high) == pytest.approx((0.02, 0.02 - half, 0.02 + half), rel=1e-6)
    assert p == pytest.approx(1 - np.sqrt(12) / np.sqrt(2 + 12), rel=1e-9)


def test_a_star_is_holms() -> None:
    """p of about 1e-4 passes 0.05 / 4, which the other rows' do not."""
    rng = np.random.default_rng(0)
    lines = []
    for row in routed.ROWS:
        for seed in range(3):
            far = {"dar-static": 1.0, "dar-dynamic": 0.012}.get(row, 0.0)
            noise = 0.01 * rng.normal()
            lines.append({"row": row, "seed": seed, "velocity_loss": 1 - far + noise, "frechet": 10 + noise})
    table = "\n".join(routed.compared(pd.DataFrame(lines), dict.fromkeys(routed.ROWS, 800)))
    assert table.count("]*") == 1 and "*" in next(line for line in table.splitlines() if line.startswith("| dar-static |"))


def test_diagnostics_are_ratios_of_blocks() -> None:
    early, late = (example().assign(run="sit-s0", step=step) for step in (100, 800))
    found = routed.diagnostics(pd.concat([early, late]))
    values = np.array([0.2 + 0.1 * b for b in range(4)])
    assert found["rms"].to_numpy() == pytest.approx([((values + 0.2) / values).mean()] * 2)
    assert found["t_readability"].tolist() == [0.9, 0.9] and list(found["step"]) == [100, 800]
