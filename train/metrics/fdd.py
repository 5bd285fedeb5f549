"""FDD, or FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675): the Fréchet distance of DINOv2's class token."""

from __future__ import annotations

from gsnr.train.metrics import Blocks, Moments, Values
from gsnr.train.metrics._frechet import with_spread

LABEL = "FD-DINOv2"
KIND = "pool"
NEEDS = "moments"
FEATURES = ("dinov2",)
COMPARES = True


def measure(samples: Blocks, reference: Moments) -> Values:
    return with_spread("fdd", samples, reference)
