"""G-SNR of the alignment gradient, ||E g||^2 / tr Cov(g), over the row's times (AHPA Sec. 3; unbiased, `gsnr.compare`)."""

from __future__ import annotations

from collections.abc import Mapping

from gsnr.probes.common.case import NAN, UNDEFINED, Case, Interval, Row, on_all
from gsnr.probes.common.row_gradients import comparisons

LABEL = "G-SNR"
SUMMARY = "signal to noise of the alignment gradient over the backbone up to the block (AHPA)"
PASSES = ("projectors", "gradients")


def measure(case: Case) -> Mapping[str, Interval]:
    found = comparisons(case)

    def one(row: Row) -> Interval:
        if row.label not in found:
            return UNDEFINED
        estimate = found[row.label].a
        return (estimate.gsnr, *estimate.ci()) if estimate.has_interval else (estimate.gsnr, NAN, NAN)

    return on_all(case, one)
