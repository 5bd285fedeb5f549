"""`mlp`: AHPA's dynamic router (Sec. 4.3, Table A.9): t in 128 dimensions, an MLP of 4 layers and width 256. About 0.17 M parameters."""

from __future__ import annotations

from torch import Tensor

from gsnr.train.routers import RouterConfig, RouterModule
from gsnr.train.routers._encodings import CHANNELS, make
from gsnr.train.routers._mlp import perceptron


class Router(RouterModule):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config)
        self.embed = make(config.encoding)
        self.mlp = perceptron(CHANNELS, config.depth, config.logits)

    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        return self.mlp(self.embed(t_B))
