"""`table`: the groups' weights in bins of t, read from what `gsnr probe --probe mixture` measured (`gsnr.mixtures`); the layers of a group alike.

Nothing is learned. Weights are of the groups' losses one by one, so they mean what they say with alignment.per_group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsnr.train.routers import RouterConfig, RouterModule


class Router(RouterModule):
    edges: Tensor
    beta: Tensor

    def __init__(self, config: RouterConfig) -> None:
        """Without a table it is the uniform mixture."""
        super().__init__(config)
        groups = len(config.sizes)
        rows = config.table_weights or (1 / groups,) * groups
        self.register_buffer("edges", torch.tensor(config.table_edges[1:-1], dtype=torch.float32), persistent=False)
        self.register_buffer("beta", torch.tensor(rows, dtype=torch.float32).view(-1, groups), persistent=False)

    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        return t_B.new_zeros(len(t_B), self.config.logits)

    def forward(self, t_B: Tensor, h_BTD: Tensor | None = None) -> dict[str, Tensor]:
        return super().forward(t_B, h_BTD) | {"beta": self.beta[torch.bucketize(t_B.float(), self.edges, right=True)]}
