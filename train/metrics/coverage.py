"""Coverage (Naeem et al. 2020, arXiv:2002.09797): the share of reference images whose ball, which reaches the fifth nearest neighbour, has a
sample inside. Strict `<`."""

from __future__ import annotations

from gsnr.train.metrics import Rows, Values
from gsnr.train.metrics._pairs import balls_around, radii
from gsnr.train.metrics.density import NEIGHBOUR

LABEL = "coverage"
KIND = "pool"
NEEDS = "rows"
FEATURES = ()
COMPARES = True


def measure(samples: Rows, reference: Rows) -> Values:
    _, of_ball = balls_around(samples, reference, radii(reference, NEIGHBOUR), strict=True)
    return {"coverage": float((of_ball > 0).mean())}
