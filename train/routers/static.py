"""`static`: learned logits that do not depend on t; zero at first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsnr.train.routers import RouterConfig, RouterModule


class Router(RouterModule):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config)
        self.row = nn.Embedding(1, config.logits)
        nn.init.zeros_(self.row.weight)

    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        return self.row(torch.zeros_like(t_B, dtype=torch.long))
