"""Cosine of the mean alignment and denoising gradients, without the minibatch's bias (`gsnr.comparison`)."""

from __future__ import annotations

from collections.abc import Mapping

from gsnr.probes.common.case import UNDEFINED, Case, Interval, on_all
from gsnr.probes.common.row_gradients import comparisons

LABEL = "cosine"
SUMMARY = "angle between the mean alignment and denoising gradients, without the minibatch's bias"
PASSES = ("projectors", "gradients")


def measure(case: Case) -> Mapping[str, Interval]:
    found = comparisons(case)
    return on_all(case, lambda row: (c.cosine, *c.cosine_ci()) if (c := found.get(row.label)) is not None and c.has_interval else UNDEFINED)
