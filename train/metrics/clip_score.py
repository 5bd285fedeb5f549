"""CLIP score (Hessel et al. 2021, arXiv:2104.08718): the mean over pairs of 100 max(cos(image, caption), 0).
The paper's own factor is 2.5, not 100."""

from __future__ import annotations

import numpy as np

from gsnr.train.metrics import Rows, Values
from gsnr.train.metrics._shares import mean

LABEL = "CLIP score"
KIND = "pairs"
NEEDS = "rows"
FEATURES = ("clip_score",)
COMPARES = False
SCALE = 100.0


def measure(samples: Rows, reference: None) -> Values:
    """samples: (N,2), whose first column is the cosine of each pair."""
    return mean("clip_score", SCALE * np.maximum(samples[:, 0].astype(np.float64), 0.0))
