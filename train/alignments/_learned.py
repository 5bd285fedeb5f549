"""What `ahpa` and `static` share beside the mixture: how their router learns.

These switches are ours, none is in the paper, and each leaves training as it was at its default. What they can do about a
router that takes one layer and keeps it is in docs/handover.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from gsnr.options import option
from gsnr.train.alignments._routed import RoutedAlignment, RoutedConfig
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.lookahead import Lookahead, look
from gsnr.train.priors.mixture import entropy


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(RoutedConfig):
    router_lr: float = option(1.0, "factor on the learning rate for the router alone, to tell slow from settled (ours)", low=0)
    release: int = option(0, "steps in which the router stays as it starts, uniform, before it learns (ours)", low=0, high=10**9)
    temperature: float = option(1.0, "the router's logits are divided by it; slows a choice, does not undo it (ours)", above=0)
    router_objective: str = option("align", "what the router learns by: its alignment loss, or what denoising gains (ours)", ("align", "lookahead"))
    lookahead_every: int = option(10, "of lookahead: steps between looks, each of two more passes (ours)", low=1, high=10**9)
    lookahead_average: float = option(0.95, "of lookahead: decay of the average of looks (ours)", low=0, below=1)
    entropy: float = option(0.0, "loss taken off a sample a nat of entropy of its weights over all layers; against one-layer mixtures (ours)", low=0)


class LearnedAlignment(RoutedAlignment):
    """L = distance - entropy x H, H in nats, before the weight of the whole alignment; H reaches the router alone."""

    def __init__(
        self,
        config: LearnedConfig,
        model: ModelConfig,
        groups: Mapping[str, tuple[int, ...]],
        *,
        router: str,
        **of_router: Any,
    ) -> None:
        super().__init__(config, model, groups, router=router, temperature=config.temperature, **of_router)
        self.router_lr, self.release, self.entropy = config.router_lr, config.release, config.entropy
        looks = config.router_objective == "lookahead"
        if looks and self.entropy:
            raise ValueError(f"alignment.entropy {self.entropy}: has no part in alignment.router_objective lookahead; leave one out")
        if looks and not any(True for _ in self.router.parameters()):
            raise ValueError(f"alignment.router_objective lookahead: router {router!r} learns nothing")
        self.ahead = Lookahead(self.router, config.lookahead_every, config.lookahead_average) if looks else None
        if self.entropy and config.beta != "softmax":
            raise ValueError(f"alignment.entropy {self.entropy}: is of weights that sum to 1; choose alignment.beta softmax, not {config.beta}")

    @property
    def rates(self) -> dict[float, list[nn.Parameter]]:
        return {self.router_lr: list(self.router.parameters())}

    def held(self, step: int) -> list[nn.Parameter]:
        return list(self.router.parameters()) if step <= self.release or self.ahead is not None else []

    def guide(self, accelerator: Accelerator, objective: nn.Module, batch: Batch, step: int) -> None:
        if self.ahead is not None and step > self.release:
            look(self.ahead, accelerator, objective, self.router, batch, step)

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        assert self.tap is not None
        h_BTD = hidden[self.tap]
        weights = self.weights(batch, h_BTD)
        distance = self.discrepancy(self.projector(h_BTD), self.mixture(batch, weights))
        return distance - self.entropy * entropy(weights) if self.entropy else distance
