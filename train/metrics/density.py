"""Density (Naeem et al. 2020, arXiv:2002.09797): in how many balls of reference images a sample lies, over k; 1 for equal laws. Strict `<`."""

from __future__ import annotations

from gsnr.train.metrics import Rows, Values
from gsnr.train.metrics._pairs import balls_around, radii

LABEL = "density"
KIND = "pool"
NEEDS = "rows"
FEATURES = ()
COMPARES = True
NEIGHBOUR = 5


def measure(samples: Rows, reference: Rows) -> Values:
    of_sample, _ = balls_around(samples, reference, radii(reference, NEIGHBOUR), strict=True)
    return {"density": float(of_sample.mean() / NEIGHBOUR)}
