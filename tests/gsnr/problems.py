"""Problems with known gradients, and a naive float64 reference that shares no code with the library."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class LinearRegression:
    """loss_i = (w.x_i - y_i)^2 / 2 with x ~ N(0, I_d), y = w*.x + sigma e, delta = w - w*. In closed form

    E g = delta,   Cov g = (|delta|^2 + sigma^2) I + delta delta^T,   tr Cov g = d (|delta|^2 + sigma^2) + |delta|^2
    """

    def __init__(self, d: int, size: float, sigma: float) -> None:
        self.d, self.sigma = d, sigma
        self.delta = np.full(d, size / np.sqrt(d))
        self.signal = size**2
        self.noise = d * (size**2 + sigma**2) + size**2
        self.model = nn.Linear(d, 1, bias=False).double()
        with torch.no_grad():
            self.model.weight.copy_(torch.from_numpy(self.delta)[None])

    def batches(self, n: int, seed: int) -> list[dict[str, torch.Tensor]]:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((n, self.d))
        return [{"x": torch.from_numpy(x), "y": torch.from_numpy(self.sigma * rng.standard_normal(n))}]

    @staticmethod
    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return 0.5 * (model(batch["x"]).squeeze(-1) - batch["y"]).square()


def mlp_problem(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    data = {"x": torch.randn(13, 5), "y": torch.randint(3, (13,))}
    return model, lambda m, b: F.cross_entropy(m(b["x"]), b["y"], reduction="none"), data


def conv_problem(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3))
    data = {"x": torch.randn(9, 2, 8, 8), "y": torch.randn(9, 3)}
    return model, lambda m, b: (m(b["x"]) - b["y"]).square().mean(1), data


def attention_problem(seed: int = 0):
    torch.manual_seed(seed)
    from gsnr.train.models.sit import SiT

    model = SiT(input_size=4, patch_size=2, in_channels=2, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    data = {"x": torch.randn(6, 2, 4, 4), "t": torch.rand(6), "y": torch.randint(3, (6,)), "v": torch.randn(6, 2, 4, 4)}
    return model, lambda m, b: (m(b["x"], b["t"], b["y"]) - b["v"]).square().flatten(1).mean(1), data


def digits():
    """512 of scikit-learn's digits as they come, classes in rotation, and an untrained MLP in float64."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    images, classes = load_digits(return_X_y=True)
    data = {"x": torch.from_numpy(images[:512] / 16), "y": torch.from_numpy(classes[:512]).long()}
    return model, lambda m, b: F.cross_entropy(m(b["x"]), b["y"], reduction="none"), data


PROBLEMS = {"mlp": mlp_problem, "conv": conv_problem, "attention": attention_problem}


def split(data: dict[str, torch.Tensor], *sizes: int) -> list[dict[str, torch.Tensor]]:
    """A batch cut into batches of the given sizes and the rest."""
    starts = np.cumsum([0, *sizes, len(next(iter(data.values()))) - sum(sizes)])
    return [{k: v[a:b] for k, v in data.items()} for a, b in pairwise(starts) if b > a]


def double(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in data.items()}


def other_loss(model, batch):
    """A second loss of the same model: it shares layers, not the gradient."""
    return (model(batch["x"]) ** 3).flatten(1).sum(1) if "t" not in batch else model(batch["x"], batch["t"], batch["y"]).abs().flatten(1).sum(1)


def naive_gradients(model: nn.Module, loss, data: dict[str, torch.Tensor]) -> np.ndarray:
    """(n, P) float64, by .backward() on one sample at a time and .grad."""
    rows = []
    for i in range(len(next(iter(data.values())))):
        model.zero_grad()
        loss(model, {k: v[i : i + 1] for k, v in data.items()}).sum().backward()
        rows.append(np.concatenate([(torch.zeros_like(p) if p.grad is None else p.grad).double().numpy().ravel() for p in model.parameters()]))
    model.zero_grad(set_to_none=True)
    return np.stack(rows)
