"""What `ahpa`, `uniform`, `static` and `heuristic` share: a router over groups of VAE layers, a projector, a loss. Only the routers differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsnr import plugins
from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.data.cache import Split
from gsnr.train.priors import normalise
from gsnr.train.priors.layers import CACHED
from gsnr.train.priors.mixture import mid_deep, mix
from gsnr.train.routers import BETAS, RouterConfig

# The parts of the target, shallow first, always in this order (AHPA Table 2).
SOURCES = {
    "both": ("mid", "deep"),
    "mid": ("mid",),
    "deep": ("deep",),
    "G1": ("G1",),
    "G2": ("G2",),
    "G3": ("mid",),
    "G4": ("deep",),
    "G1-G4": ("G1", "G2", "mid", "deep"),
}


@dataclass(frozen=True, kw_only=True)
class RoutedConfig(AlignmentConfig):
    source: str = option("both", "groups of VAE layers (Table 2); both is mid and deep, mid is G3, deep is G4", tuple(SOURCES))
    split: str | None = option(None, "mid/deep layers, 2/6 say (Table D.14; default: as the cache groups them, 4/4 on SD-VAE)")
    features: str = option("none", "normalisation of each layer; the paper mentions none; centre and rms are ours", normalise.NORMALISATIONS)
    beta: str = option("softmax", "how the weights between the groups are made (Sec. 4.3)", BETAS)
    projector: str = option("conv3x3", "head on the hidden state (Table D.13)", "projectors")
    loss: str = option("cosine", "distance to the target, over channels (Eq. 5, Table D.13)", tuple(losses.LOSSES))
    per_group: bool = option(False, "a cosine of its own for each group, weighted by beta: sum_g beta_g (1 - cos_g), in place of one over all (ours)")

    @property
    def needs(self) -> tuple[str, ...]:
        groups = {CACHED.get(part, part) for part in SOURCES[self.source]}
        return tuple(sorted(groups | ({"G3", "G4"} if self.split and groups & {"G3", "G4"} else set())))

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """None: a mixture that is learned is the uniform one until it is trained."""
        return {}

    @classmethod
    def like(cls, own: AlignmentConfig | None, source: str) -> dict[str, Any]:
        """Options with which a mixture of this source is compared with the checkpoint's own: what is not the target is taken from it."""
        if not isinstance(own, RoutedConfig):
            return {"source": source}
        divided = own.split is not None and set(CACHED.values()) & set(cls(source=source).needs)
        shared = {"features": own.features, "loss": own.loss, "per_group": own.per_group, "projector": own.projector}
        return {"source": source} | shared | ({"split": own.split} if divided else {})


def _counts(split: str, mid: tuple[int, ...], deep: tuple[int, ...]) -> tuple[int, int]:
    """Numbers of mid and deep layers. Raises ValueError for a split that the cached groups cannot make."""
    cached = (mid[0], deep[0])
    counts = tuple(int(part) for part in split.split("/")) if split.count("/") == 1 and split.replace("/", "").isdecimal() and split.isascii() else ()
    if counts != cached and not (len(counts) == 2 and min(counts) > 0 and sum(counts) == sum(cached) and mid[1] == deep[1]):
        raise ValueError(
            f"alignment.split {split!r} does not divide this VAE's {cached[0]} + {cached[1]} mid and deep layers; "
            f"it has {cached[0]}/{cached[1]}, and any a/b of {sum(cached)} layers where their widths agree"
        )
    return counts[0], counts[1]


class RoutedAlignment(TargetAlignment):
    """Pulls projected hidden states towards a router's mixture of VAE features (AHPA Eq. 2-5)."""

    def __init__(
        self,
        config: RoutedConfig,
        model: ModelConfig,
        groups: Mapping[str, tuple[int, ...]],
        *,
        router: str,
        **of_router: Any,
    ) -> None:
        """of_router: what a RouterConfig has beside sizes, beta and width."""
        super().__init__(config)
        self.sources = SOURCES[config.source]
        sizes = {source: groups[CACHED.get(source, source)][0] for source in self.sources}
        channels = {source: groups[CACHED.get(source, source)][1] for source in self.sources}
        self.mid_layers: int | None = None  # as cached
        if config.split is not None:
            if not set(self.sources) & CACHED.keys():
                raise ValueError(f"alignment.split {config.split!r}: divides mid and deep layers; source {config.source!r} has neither")
            self.mid_layers, deep_layers = _counts(config.split, groups["G3"], groups["G4"])
            sizes |= {"mid": self.mid_layers, "deep": deep_layers}
        self.normaliser = normalise.make(config.features, {group: groups[group][:2] for group in self.needs})
        shape = RouterConfig(
            sizes={source: sizes[source] for source in self.sources},
            beta=config.beta,
            hidden_size=model.hidden_size,
            **of_router,
        )
        self.router = plugins.find("routers", router).Router(shape)
        self.channels = [channels[source] for source in self.sources]
        self.projector = plugins.find("projectors", config.projector).Projector(model.hidden_size, sum(self.channels), model.grid)
        self.loss_function = losses.find(config.loss)
        self.per_group = config.per_group
        if self.per_group and (config.loss, config.beta) != ("cosine", "softmax"):
            raise ValueError(f"alignment.per_group: needs loss cosine and beta softmax, not {config.loss} and {config.beta}")

    def calibrate(self, train: Split) -> None:
        self.normaliser.calibrate(train)

    def normalised(self, group: str, f_BLCgg: Tensor) -> Tensor:
        return self.normaliser(group, f_BLCgg)

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        return self.mixture(batch, self.weights(batch, h_BTD))

    def weights(self, batch: Batch, h_BTD: Tensor) -> dict[str, Tensor]:
        """The router's, sample by sample; float32."""
        with losses.full_precision(h_BTD.device):  # bf16 would round t to 8 bits, and the router with it
            return self.router(batch["t"].float(), h_BTD.detach().float())

    def mixture(self, batch: Batch, weights: dict[str, Tensor]) -> Tensor:
        """(B,T,C) float32: the batch's features with these weights."""
        with losses.full_precision(batch["t"].device):
            features = {group: self.normalised(group, batch[group].detach().float()) for group in self.needs}
            if self.mid_layers is not None:
                features |= mid_deep(features["G3"], features["G4"], self.mid_layers)
            chosen = {source: features[source if source in features else CACHED[source]] for source in self.sources}
            return mix(chosen, weights, unit=self.per_group)

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.group_cosine(projected_BTC, target_BTC, self.channels) if self.per_group else self.loss_function(projected_BTC, target_BTC)

    def group_loss(self, group: int, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        """(B,): the discrepancy with all the weight on one of `sources`, its layers alike: what `gsnr.mixtures` mixes."""
        assert self.tap is not None
        n, sizes = len(batch["t"]), self.router.config.sizes
        weights = {source: batch["t"].new_full((n, size), 1 / size, dtype=torch.float32) for source, size in sizes.items()}
        weights["beta"] = torch.eye(len(sizes), device=batch["t"].device)[group].expand(n, -1)
        return self.discrepancy(self.projector(hidden[self.tap]), self.mixture(batch, weights))

    def router_weights(self, t_B: Tensor) -> dict[str, Tensor]:
        learned = any(True for _ in self.router.parameters())
        return self.router(t_B, None) if learned and not self.router.reads_content else {}
