"""Inception score (Salimans et al. 2016, arXiv:1606.03498) as ADM's evaluator takes it: the mean over runs of 5000 samples, in the order of the
file, of exp(mean_x KL(p(y|x) || p(y))), p(y) the run's own mean. Another order gives another score."""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy

from gsnr.train.metrics import Rows, Values

LABEL = "IS"
KIND = "probabilities"
NEEDS = "rows"
FEATURES = ()
COMPARES = False
SPLIT = 5000


def measure(samples: Rows, reference: None) -> Values:
    """is_std: over the runs; None for one run."""
    scores = []
    for first in range(0, len(samples), SPLIT):
        p_BY = samples[first : first + SPLIT].astype(np.float64)
        mean_Y = p_BY.mean(0)
        scores.append(np.exp((xlogy(p_BY, p_BY) - xlogy(p_BY, mean_Y)).sum(1).mean()))
    return {"is": float(np.mean(scores)), "is_std": float(np.std(scores)) if len(scores) > 1 else None}
