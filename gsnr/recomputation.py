"""The cells of a table computed again from their samples, all at once, and held against them. Importable without torch.

Legend: K cells, N samples of all of them, cell by cell; what is a cell's is (K,), what is a sample's (N,). The formulas are `gsnr.estimates`'.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gsnr.estimates import LEVEL, Array, noise, ratio, signal, variance_of_ratio
from gsnr.intervals import NORMAL_95, student

TOLERANCE = 1e-4  # of a sample's squared gradient, by which a cell and its samples may differ: float32 sums in another order
COLUMNS = ("signal", "noise", "gsnr_low", "gsnr_high", "loss")
Counts = NDArray[np.int64]


class Fault(ValueError):
    """Row, column, and how its samples have it. Whoever has a table checked names its file."""


def check(cells: pd.DataFrame, row_N: Counts, samples: pd.DataFrame, where: str) -> None:
    """row_N: of each sample the number of its cell, ascending. samples: columns q, r, loss; they lie in `where`. Raises Fault for the first cell that
    has another number of samples than it says, and for the first that is not what they make."""
    n_K, found_K = cells["n"].to_numpy(np.int64), np.bincount(row_N, minlength=len(cells))
    if (found_K != n_K).any():
        row = int((found_K != n_K).argmax())
        raise Fault(f"row {row}, column 'n': {found_K[row]} samples for a cell of n = {n_K[row]}, in {where}")
    said = {column: cells[column].to_numpy(np.float64) for column in COLUMNS}
    limit_K, (q_N, r_N, loss_N) = cells["detection_limit"].to_numpy(np.float64), (samples[name].to_numpy(np.float64) for name in ("q", "r", "loss"))
    with np.errstate(all="ignore"):  # 0/0 is NaN, as it is in the cells
        made, slack, told_K = _again(n_K, limit_K, row_N, q_N, r_N, loss_N)
        bad = np.stack([(np.abs(said[x] - made[x]) > slack[x]) | (np.isnan(said[x]) != np.isnan(made[x])) for x in COLUMNS])
    bad[2:4] &= told_K
    if bad.any():
        row = int(bad.any(0).argmax())
        column = COLUMNS[int(bad[:, row].argmax())]
        raise Fault(f"row {row}, column {column!r}: {said[column][row]:.6g}, but {made[column][row]:.6g} from {where}")


def _again(
    n_K: Counts, limit_K: Array, row_N: Counts, q_N: Array, r_N: Array, loss_N: Array
) -> tuple[dict[str, Array], dict[str, Array], NDArray[np.bool_]]:
    """Of COLUMNS: as the samples make them, and by how much they may differ; where the interval says anything. ||S||^2 = sum r; tr(Cov^2) is read
    off the detection limit. A ratio to noise that may be rounding says nothing."""
    starts_K = np.cumsum(n_K) - n_K
    sum_sq_K, q_K, loss_K = (np.add.reduceat(x, starts_K) for x in (r_N, q_N, loss_N))
    signal_K, noise_K = np.asarray(signal(sum_sq_K, q_K, n_K)), np.asarray(noise(sum_sq_K, q_K, n_K))
    gsnr_K = np.asarray(ratio(signal_K, noise_K))
    without_N, rest_N, m_N = sum_sq_K[row_N] - 2 * r_N + q_N, q_K[row_N] - q_N, n_K[row_N] - 1  # `estimates.delete_one`
    deleted_N = np.asarray(ratio(signal(without_N, rest_N, m_N), noise(without_N, rest_N, m_N)))
    apart_N = deleted_N - (np.add.reduceat(deleted_N, starts_K) / n_K)[row_N]
    jackknife_K = (n_K - 1) / n_K * np.add.reduceat(np.square(apart_N), starts_K)
    pairs_K = ratio((limit_K * noise_K / NORMAL_95) ** 2, noise_K**2)
    half_K = np.array([student(n, LEVEL) for n in n_K.tolist()]) * np.sqrt(variance_of_ratio(jackknife_K, pairs_K, n_K))
    near_K, size_K = TOLERANCE * q_K / n_K, np.abs(gsnr_K)
    of_ends_K = 10 * TOLERANCE * (1 / n_K + size_K * (1 + size_K) + 2 * half_K)  # the noise is what is left over where gsnr is large
    made = (signal_K, noise_K, gsnr_K - half_K, gsnr_K + half_K, loss_K / n_K)
    slack = (near_K, near_K, of_ends_K, of_ends_K, TOLERANCE * np.maximum.reduceat(np.abs(loss_N), starts_K))
    return dict(zip(COLUMNS, made, strict=True)), dict(zip(COLUMNS, slack, strict=True)), ~((q_K > 0) & (np.abs(noise_K) <= near_K))
