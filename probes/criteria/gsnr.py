"""G-SNR of the alignment gradient, ||E g||^2 / tr Cov(g), over the row's times (AHPA Sec. 3; unbiased, `gsnr.compare`)."""

from __future__ import annotations

from collections.abc import Mapping

from gsnr.probes.common.case import NAN, Case, Interval, on_all
from gsnr.probes.common.row_gradients import comparisons

LABEL = "G-SNR"
SUMMARY = "signal to noise of the alignment gradient over the backbone up to the block (AHPA)"
PASSES = ("projectors", "gradients")


def measure(case: Case) -> Mapping[str, Interval]:
    found = {label: c.a for label, c in comparisons(case).items()}
    return on_all(case, lambda row: (found[row.label].gsnr, *(found[row.label].ci() if found[row.label].has_interval else (NAN, NAN))))
