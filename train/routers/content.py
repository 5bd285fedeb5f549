"""`content`: the MLP router that also reads the tap's hidden states, averaged over tokens (AHPA Table D.17, experiment 3).

They are projected to 128 dimensions and stand beside the encoding of t. No gradient flows through them into the backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsnr.train.routers import RouterConfig, RouterModule
from gsnr.train.routers._encodings import CHANNELS, make
from gsnr.train.routers._mlp import perceptron


class Router(RouterModule):
    reads_content = True

    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config)
        self.embed = make(config.encoding)
        self.project = nn.Linear(config.hidden_size, CHANNELS)
        self.mlp = perceptron(2 * CHANNELS, config.depth, config.logits)

    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        assert h_BTD is not None
        return self.mlp(torch.cat([self.embed(t_B), self.project(h_BTD.mean(1))], dim=-1))
