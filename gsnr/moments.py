"""Sufficient statistics of per-sample gradients: S per parameter, ||g_i||^2 per group, and what the intervals need. They add.

Legend: C samples of a chunk, n samples in all, g_i one sample's gradient, S = sum_i g_i. Scalars are float64; S keeps the parameters'
dtype, at least float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gsnr.engines import Gradients
from gsnr.estimates import Array, Estimate, trace_cov_sq

Labels = dict[str, tuple[str, ...]]  # parameter name -> the groups it counts towards


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def square_norms(gradients: Gradients) -> dict[str, Tensor]:
    """name -> (C,) float64: ||g_i||^2 per parameter."""
    return {name: torch.linalg.vector_norm(_at_least_float32(g).flatten(1), dim=1, dtype=torch.float64).square() for name, g in gradients.items()}


def inner_products(gradients: Gradients, sums: Gradients) -> dict[str, Tensor]:
    """name -> (C,) float64: g_i . S per parameter."""
    return {name: (_at_least_float32(g).flatten(1) @ sums[name].flatten()).double() for name, g in gradients.items()}


def _difference_gram(g: Tensor) -> Tensor:
    """(K, K) float64: inner products of g_2k - g_2k+1, k < K = C // 2, for one parameter."""
    even = len(g) // 2 * 2
    d = _at_least_float32(g[0:even:2] - g[1:even:2]).flatten(1)
    return (d @ d.T).double()


def by_group(values: dict[str, Tensor], labels: Labels) -> dict[str, Array]:
    """Adds per-parameter values up over each group's parameters; group -> numpy float64."""
    totals: dict[str, Tensor] = {}
    for name, value in values.items():
        for label in labels[name]:
            totals[label] = totals[label] + value if label in totals else value
    return {label: value.cpu().numpy().astype(np.float64) for label, value in totals.items()}


@dataclass
class Moments:
    """Accumulates chunks of per-sample gradients; two of disjoint samples merge into one."""

    labels: Labels
    sums: Gradients = field(default_factory=dict)
    q: dict[str, list[Array]] = field(default_factory=dict)
    cov_sq: dict[str, list[float]] = field(default_factory=dict)

    def add(self, gradients: Gradients) -> None:
        """One chunk: name -> (C, *shape)."""
        for name, g in gradients.items():
            total = _at_least_float32(g).sum(0)
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.watch(gradients)
        for label, gram in by_group({name: _difference_gram(g) for name, g in gradients.items()}, self.labels).items():
            self.cov_sq.setdefault(label, []).append(trace_cov_sq(gram))

    def watch(self, gradients: Gradients) -> Gradients:
        """Takes down ||g_i||^2, the part of `add` that tells samples apart, and passes the chunk on."""
        for label, q_C in by_group(square_norms(gradients), self.labels).items():
            self.q.setdefault(label, []).append(q_C)
        return gradients

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples. Raises ValueError where the parameters or groups differ."""
        if self.labels != other.labels:
            raise ValueError("results of different parameters or groups do not merge")
        return Moments(
            self.labels,
            {name: s + other.sums[name].to(s.device) for name, s in self.sums.items()},
            {label: q + other.q[label] for label, q in self.q.items()},
            {label: c + other.cov_sq[label] for label, c in self.cov_sq.items()},
        )

    def estimates(self, r: dict[str, Array] | None) -> dict[str, Estimate]:
        """group -> Estimate. r: group -> (n,) g_i . S in the order the chunks were added, or None."""
        sum_sq = by_group({name: torch.linalg.vector_norm(s, dtype=torch.float64).square() for name, s in self.sums.items()}, self.labels)
        return {
            label: Estimate(
                group=label,
                q_n=np.concatenate(q),
                r_n=None if r is None else r[label],
                sum_sq=float(sum_sq[label]),
                cov_sq=_mean_of_known(self.cov_sq[label]),
            )
            for label, q in self.q.items()
        }


def _mean_of_known(values: list[float]) -> float:
    """Mean over the chunks that could tell (those of at least four samples); NaN where none could."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
