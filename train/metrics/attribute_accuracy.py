"""Attribute accuracy in GenEval's manner (Ghosh et al. 2023, arXiv:2310.11513): the share of images that show what their captions name: all of it,
each attribute alone, and all of it where the combination was seen in training or was withheld. Intervals: 95 %, Wilson's, of the images alone."""

from __future__ import annotations

import numpy as np

from gsnr.train.demo.captions import ATTRIBUTES
from gsnr.train.metrics import Rows, Values
from gsnr.train.metrics._shares import share

LABEL = "attribute accuracy"
KIND = "pairs"
NEEDS = "rows"
FEATURES = ("attributes",)
COMPARES = False


def measure(samples: Rows, reference: None) -> Values:
    """samples: (N,A+1), of each attribute above 0 where it is right, and 1 where the combination is withheld."""
    right_NA, withheld_N = samples[:, :-1] > 0, samples[:, -1] > 0.5
    all_N = np.logical_and.reduce(right_NA, axis=1)
    values = share("attribute_accuracy", all_N)
    for name, right_N in zip(ATTRIBUTES, right_NA.T, strict=True):
        values[f"attribute_accuracy_{name}"] = float(np.mean(right_N))
    return values | share("attribute_accuracy_seen", all_N[~withheld_N]) | share("attribute_accuracy_withheld", all_N[withheld_N])
