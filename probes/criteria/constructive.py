"""Constructive G-SNR: the part of the alignment's signal that also descends the denoising loss, sign(cos) cos^2 gsnr (AHPA App. E.1;
`gsnr.comparison`)."""

from __future__ import annotations

from collections.abc import Mapping

from gsnr.probes.common.case import UNDEFINED, Case, Interval, on_all
from gsnr.probes.common.row_gradients import comparisons

LABEL = "constructive G-SNR"
SUMMARY = "the part of G-SNR that also descends the denoising loss"
PASSES = ("projectors", "gradients")


def measure(case: Case) -> Mapping[str, Interval]:
    found = comparisons(case)
    return on_all(
        case, lambda row: (c.constructive, *c.constructive_ci()) if (c := found.get(row.label)) is not None and c.has_interval else UNDEFINED
    )
