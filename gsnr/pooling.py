"""One G-SNR over several bins of t: the law of total variance, from results that were measured bin by bin.

Legend: bins b with weights w_b that sum to 1; mu_b, Cov_b mean and covariance within a bin; ḡ_b± = mean gradient over the samples of sign +-.

    mu = sum_b w_b mu_b                 Cov = sum_b w_b Cov_b + sum_b w_b (mu_b - mu)(mu_b - mu)^T
    U  = sum_b w_b^2 U_b + M+ . M- - sum_b w_b^2 ḡ_b+ . ḡ_b-           with M± = sum_b w_b ḡ_b±
    V  = sum_b w_b V_b + sum_b w_b U_b - U

Both are unbiased: products between bins pair samples of opposite sign only. Where the bins hold the same images, measure them with `index=` the
image's number: an image then has one sign in all bins, opposite signs are different images, and its gradients never meet one another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from gsnr.estimates import ratio
from gsnr.moments import by_group
from gsnr.results import Result


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """One group over all bins. `between`: the part of `noise` that is the variance of bin means, corrected for their own noise."""

    signal: float
    noise: float
    between: float

    @property
    def gsnr(self) -> float:
        """U / V; it has no interval, since the bins' sums are all that is kept of them."""
        return float(ratio(self.signal, self.noise))


def pool(results: Iterable[Result], weights: Iterable[float]) -> dict[str, Pooled]:
    """group -> Pooled, over bins in which t has the probabilities `weights`. Holds two vectors of the parameters' size, however many bins.

    `results` may be a generator. Bins that share samples must have been measured with `index=`, the samples' numbers in the data: without it signs
    are hashes of what the bins hold, which t and noise change, so a sample would meet itself and U be too large.

    Raises ValueError for weights that are not positive or do not sum to 1, fewer weights than results or the reverse, results of different
    groups, or a bin with fewer than one sample of either sign.
    """
    w = list(weights)
    if not w or min(w) <= 0 or abs(sum(w) - 1) > 1e-6:
        raise ValueError(f"weights must be positive and sum to 1, not {w}")
    half_means: dict[str, dict[str, Tensor]] = {"plus": {}, "minus": {}}
    within: dict[str, list[float]] = {}
    labels = None
    count = 0
    for count, result in enumerate(results, start=1):
        moments = result.moments
        labels = labels or moments.labels
        if count > len(w) or moments.labels != labels:
            raise ValueError(
                "results of different parameters or groups do not pool" if count <= len(w) else f"more results than the {len(w)} weights"
            )
        size = {"plus": int((moments.signs > 0).sum()), "minus": int((moments.signs < 0).sum())}
        if not all(size.values()):
            raise ValueError(f"bin {count}: too few samples to pool ({moments.n})")
        weight = w[count - 1]
        for half, mean in half_means.items():
            for name, total in getattr(moments, half).items():
                part = total * (weight / size[half])
                mean[name] = mean[name] + part if name in mean else part
        crossed = moments.product(moments, "plus", "minus")
        for group, estimate in result.estimates.items():
            cross = weight**2 * crossed[group] / (size["plus"] * size["minus"])
            terms = (weight**2 * estimate.signal - cross, weight * estimate.noise, weight * estimate.signal)
            within[group] = [a + b for a, b in zip(within.get(group, [0.0] * 3), terms, strict=True)]
    if count != len(w) or labels is None:
        raise ValueError(f"{count} results for {len(w)} weights")
    dots = {name: (half_means["plus"][name].double() * half_means["minus"][name].double()).sum() for name in labels}
    pooled = {}
    for group, crossed_halves in by_group(dots, labels).items():
        own, noise, signals = within[group]
        signal = own + float(crossed_halves)
        pooled[group] = Pooled(signal=signal, noise=noise + signals - signal, between=signals - signal)
    return pooled
