"""sFID (Nash et al. 2021, arXiv:2103.03841): the Fréchet distance of Inception's spatial features, as ADM's evaluator takes them."""

from __future__ import annotations

from gsnr.train.metrics import Blocks, Moments, Values
from gsnr.train.metrics._frechet import with_spread

LABEL = "sFID"
KIND = "spatial"
NEEDS = "moments"
FEATURES = ()
COMPARES = True


def measure(samples: Blocks, reference: Moments) -> Values:
    return with_spread("sfid", samples, reference)
