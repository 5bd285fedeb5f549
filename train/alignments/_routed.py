"""What `ahpa` and `uniform` share: a router over groups of VAE layers, a projector, a loss. The two differ in the router alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from train import losses, plugins
from train.alignments import AlignmentModule
from train.data.batches import Batch
from train.priors.mixture import mid_deep, mix


def default_tap(depth: int) -> int:
    """A quarter of the depth: block 3 of B, 6 of L, 7 of XL (AHPA Table A.9, Sec. 5.2.1)."""
    return max(1, round(depth / 4))


class RoutedAlignment(AlignmentModule):
    """Pulls projected hidden states towards a router's mixture of VAE features.

    sources: the groups of the target, of "mid" and "deep". Raises ValueError for a split that the cached groups cannot make.
    """

    needs = ("G3", "G4")

    def __init__(
        self,
        *,
        tap: int | None,
        weight: float,
        split: str | None,
        sources: tuple[str, ...],
        router: str,
        projector: str,
        hidden_size: int,
        grid: int,
        groups: Mapping[str, tuple[int, ...]],
    ) -> None:
        super().__init__()
        (mid_layers, mid_channels, *_), (deep_layers, deep_channels, *_) = groups["G3"], groups["G4"]
        split = split or f"{mid_layers}/{deep_layers}"
        counts = tuple(int(part) for part in split.split("/")) if split.count("/") == 1 and split.replace("/", "").isdigit() else ()
        regrouped = len(counts) == 2 and min(counts) > 0 and sum(counts) == mid_layers + deep_layers and mid_channels == deep_channels
        if counts != (mid_layers, deep_layers) and not regrouped:
            raise ValueError(
                f"alignment.split {split!r} does not divide this VAE's {mid_layers} + {deep_layers} mid and deep layers; "
                f"it has {mid_layers}/{deep_layers}, and any a/b of {mid_layers + deep_layers} layers where their widths agree"
            )
        self.tap, self.weight, self.split, self.sources = tap, weight, split, sources
        sizes = dict(zip(("mid", "deep"), counts, strict=True))
        channels = {"mid": mid_channels, "deep": deep_channels}
        self.router = plugins.find("routers", router).Router({source: sizes[source] for source in sources})
        out = sum(channels[source] for source in sources)
        self.projector = plugins.find("projectors", projector).Projector(hidden_size, out, grid)

    def target(self, batch: Batch, t_B: Tensor) -> Tensor:
        features = mid_deep(batch, self.split)
        with torch.autocast(t_B.device.type, enabled=False):  # bf16 would round t to 8 bits, and the router with it
            return mix({source: features[source] for source in self.sources}, self.router(t_B.float()))

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.cosine(projected_BTC, target_BTC)

    def router_weights(self, t_B: Tensor) -> dict[str, Tensor]:
        return self.router(t_B) if any(True for _ in self.router.parameters()) else {}
