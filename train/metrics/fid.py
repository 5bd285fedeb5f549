"""FID: the Fréchet distance of pooled features. That of Inception's is the field's FID; of other features it is a distance of that kind."""

from __future__ import annotations

from gsnr.train.metrics import Blocks, Moments, Values
from gsnr.train.metrics._frechet import with_spread

LABEL = "FID"
KIND = "pool"
NEEDS = "moments"
FEATURES = ()
COMPARES = True


def measure(samples: Blocks, reference: Moments) -> Values:
    return with_spread("fid", samples, reference)
