"""CMMD (Jayasumana et al. 2024, arXiv:2401.09603): squared MMD of CLIP embeddings of length 1 with the kernel exp(-||x - y||^2 / (2 sigma^2)),
sigma = 10, times 1000; biased (V-statistic), and so never below 0."""

from __future__ import annotations

from gsnr.train.metrics import Rows, Values
from gsnr.train.metrics._pairs import blocks

LABEL = "CMMD"
KIND = "pool"
NEEDS = "rows"
FEATURES = ("clip",)
COMPARES = True
SIGMA, SCALE = 10.0, 1000.0


def _mean_kernel(x_ND: Rows, y_MD: Rows) -> float:
    total = sum(float(d_AB.mul_(-0.5 / SIGMA**2).expm1_().sum()) for _, across in blocks(x_ND, y_MD) for _, d_AB in across)
    return total / (len(x_ND) * len(y_MD))  # of the kernel less 1, which drops out of the sum below and would take its digits


def measure(samples: Rows, reference: Rows) -> Values:
    value = _mean_kernel(samples, samples) + _mean_kernel(reference, reference) - 2 * _mean_kernel(samples, reference)
    return {"cmmd": SCALE * value}
