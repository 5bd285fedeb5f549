"""A stranger's metric: the squared distance between the means, the first part of a Fréchet distance."""

from __future__ import annotations

import numpy as np

from gsnr.train.metrics import Blocks, Moments, Values

LABEL = "distance of means"
KIND = "pool"
NEEDS = "moments"
FEATURES = ()
COMPARES = True


def measure(samples: Blocks, reference: Moments) -> Values:
    return {"centroid": float(np.square(samples.whole.mean - reference.mean).sum())}
