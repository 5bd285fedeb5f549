"""Routers: t -> mixture weights. One file each, found by name; a file has

class Router(RouterModule)     built as Router(config: RouterConfig)
    .forward(t_B, h_BTD)       {group: alpha (B,L) summing to 1, ..., "beta": (B, groups)}; t = 1 is noise

h_BTD are the hidden states at the tap, which only a router that says `reads_content` looks at; others are called with None on a t-grid.
Shapes: B samples, L layers of a group, K = all layers and groups together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

BETAS = ("softmax", "sigmoid")
DEEPEST = 64  # nobody means a deeper one


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """sizes: group -> number of layers, in concatenation order. beta: how the groups' logits become weights. depth, encoding: of the MLP and
    of t, where a router has them. hidden_size: width of h. temperature: what the logits are divided by. table_edges, table_weights: of `table`,
    edges of bins of t, and for each bin a weight of each group, bin by bin."""

    sizes: dict[str, int]
    beta: str = "softmax"
    depth: int = 4
    encoding: str = "linear"
    hidden_size: int = 0
    temperature: float = 1.0
    table_edges: tuple[float, ...] = ()
    table_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.beta not in BETAS:
            raise ValueError(f"alignment.beta {self.beta!r} does not exist; choose from {', '.join(BETAS)}")
        if not 1 <= self.depth <= DEEPEST:
            raise ValueError(f"alignment.router_depth {self.depth}: must be between 1 and {DEEPEST}")

    @property
    def logits(self) -> int:
        """K."""
        return sum(self.sizes.values()) + len(self.sizes)


class RouterModule(nn.Module, ABC):
    reads_content = False

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        """(B,K): the groups' layers one after another, then the groups."""

    def forward(self, t_B: Tensor, h_BTD: Tensor | None = None) -> dict[str, Tensor]:
        """alpha by softmax, beta by softmax or sigmoid of the logits over the temperature (AHPA Eq. 2, 3), float32."""
        parts = self.config.sizes | {"beta": len(self.config.sizes)}
        logits_BK = self.logits(t_B, h_BTD).float() / self.config.temperature
        split = dict(zip(parts, logits_BK.split(list(parts.values()), -1), strict=True))
        return {name: x.sigmoid() if name == "beta" and self.config.beta == "sigmoid" else x.softmax(-1) for name, x in split.items()}
