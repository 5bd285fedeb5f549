"""`fixed`: the uniform mixture at every t, without parameters."""

from __future__ import annotations

from torch import Tensor

from gsnr.train.routers import RouterModule


class Router(RouterModule):
    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        return t_B.new_zeros(len(t_B), self.config.logits)
