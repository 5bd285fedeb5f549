"""Precision (Kynkäänniemi et al. 2019, arXiv:1904.06991): the share of samples inside the ball of any reference image, which reaches its third
nearest neighbour, `<=` as in ADM's evaluator."""

from __future__ import annotations

from gsnr.train.metrics import Rows, Values
from gsnr.train.metrics._pairs import balls_around, radii

LABEL = "precision"
KIND = "pool"
NEEDS = "rows"
FEATURES = ()
COMPARES = True
NEIGHBOUR = 3


def measure(samples: Rows, reference: Rows) -> Values:
    of_sample, _ = balls_around(samples, reference, radii(reference, NEIGHBOUR), strict=False)
    return {"precision": float((of_sample > 0).mean())}
