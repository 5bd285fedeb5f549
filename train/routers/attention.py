"""`attention`: t asks a bank of learned prototypes, each a configuration of all weights (AHPA Table D.17, experiment 5).

    logits = softmax(q(e) K^T / sqrt(d)) V,   e the encoding of t; V starts at zero, so training starts at the uniform mixture

The paper does not say how many prototypes; eight here.
"""

from __future__ import annotations

from torch import Tensor, nn

from gsnr.train.routers import RouterConfig, RouterModule
from gsnr.train.routers._encodings import CHANNELS, make

PROTOTYPES = 8


class Router(RouterModule):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config)
        self.embed = make(config.encoding)
        self.query = nn.Linear(CHANNELS, CHANNELS)
        self.keys = nn.Linear(CHANNELS, PROTOTYPES, bias=False)
        self.values = nn.Linear(PROTOTYPES, config.logits, bias=False)
        nn.init.zeros_(self.values.weight)

    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        scores = self.keys(self.query(self.embed(t_B))) / CHANNELS**0.5
        return self.values(scores.softmax(-1))
