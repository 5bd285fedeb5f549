"""Recall (Kynkäänniemi et al. 2019, arXiv:1904.06991): precision with the sets exchanged, the share of reference images inside any sample's ball."""

from __future__ import annotations

from gsnr.train.metrics import Rows, Values, precision

LABEL = "recall"
KIND = "pool"
NEEDS = "rows"
FEATURES = ()
COMPARES = True


def measure(samples: Rows, reference: Rows) -> Values:
    return {"recall": precision.measure(reference, samples)["precision"]}
