"""PickScore (Kirstain et al. 2023, arXiv:2305.01569): the mean over pairs of exp(logit_scale) cos(image, caption), near 20, in the model's own scale.
No softmax over images: there is one of each caption."""

from __future__ import annotations

import numpy as np

from gsnr.train.metrics import Rows, Values
from gsnr.train.metrics._shares import mean

LABEL = "PickScore"
KIND = "pairs"
NEEDS = "rows"
FEATURES = ("pickscore",)
COMPARES = False


def measure(samples: Rows, reference: None) -> Values:
    """samples: (N,2), cosine and scale of each pair."""
    return mean("pickscore", samples[:, 0].astype(np.float64) * samples[:, 1])
