"""`mlp`: AHPA's dynamic router (Sec. 4.3, Table A.9): e = W t + b in 128 dimensions, a 4-layer MLP of width 256, softmaxes.

Its last layer is zero-initialised, so that training starts at the uniform mixture. About 0.17 M parameters.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

EMBED, HIDDEN, DEPTH = 128, 256, 4


class Router(nn.Module):
    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes = sizes | {"beta": len(sizes)}
        self.embed = nn.Linear(1, EMBED)
        widths = [EMBED, *[HIDDEN] * (DEPTH - 1), sum(self.sizes.values())]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.mlp = nn.Sequential(layers[0], *(module for layer in layers[1:] for module in (nn.SiLU(), layer)))

    def forward(self, t_B: Tensor) -> dict[str, Tensor]:
        logits = self.mlp(self.embed(t_B.to(self.embed.weight.dtype).unsqueeze(-1))).float()
        return {name: part.softmax(-1) for name, part in zip(self.sizes, logits.split(list(self.sizes.values()), -1), strict=True)}
