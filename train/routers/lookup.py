"""`lookup`: one row of learned logits in each of ten equal bins of t, so piecewise constant (AHPA Table D.17, experiment 4)."""

from __future__ import annotations

from torch import Tensor, nn

from gsnr.train.routers import RouterConfig, RouterModule

BINS = 10


class Router(RouterModule):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(BINS, config.logits)
        nn.init.zeros_(self.table.weight)

    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        return self.table((t_B * BINS).long().clamp(0, BINS - 1))
