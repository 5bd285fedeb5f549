"""The router that learns what denoising gains: its gradient in closed form, averages and their noise, and in the trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gsnr.train.command import main
from gsnr.train.contracts.problem import made
from gsnr.train.lookahead import LEAST, Lookahead, slope
from gsnr.train.runs import checkpoint
from tests.conftest import call
from tests.train.run_files import assert_same_run, lines

A, TARGETS = torch.tensor([1.0, 0.5, -0.3]), torch.tensor([[0.9, -0.3, 0.0], [0.1, 1.0, -0.6]])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3) + 0.01)


class Quadratic(nn.Module):
    """velocity |theta - a|^2 / 2; align sum_k beta_k |theta - a_k|^2 / 2 with beta the softmax of the router's logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.model, self.router = Model(), nn.ParameterDict({"logits": nn.Parameter(logits)})

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        theta, one = self.model.theta, torch.ones(len(batch["t"]))
        each = 0.5 * (theta - TARGETS).square().sum(1)
        return {"velocity": 0.5 * (theta - A).square().sum() * one, "align": (self.router["logits"].softmax(0) * each).sum() * one}


def cosine(logits: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    g_d, g_a = theta - A, (logits.softmax(0)[:, None] * (theta - TARGETS)).sum(0)
    return (g_d @ g_a) / g_d.norm() / g_a.norm()


def test_slope_in_closed_form_and_where_it_comes_to_rest() -> None:
    """That of the cosine, by autograd in float64; and ascended, an inner mixture that beats either target."""
    start = torch.tensor([0.3, -0.2])
    logits = start.double().requires_grad_(True)
    cosine(logits, torch.full((3,), 0.01).double()).backward()
    problem = Quadratic(start)
    found = slope(problem, problem.router, {"t": torch.zeros(4)})
    np.testing.assert_allclose(found, logits.grad, rtol=1e-2, atol=1e-4, err_msg="a central difference in float32")
    for _ in range(300):
        problem.router["logits"].data += 3 * slope(problem, problem.router, {"t": torch.zeros(4)})
    theta = problem.model.theta.detach()
    at = [cosine(x, theta).item() for x in (problem.router["logits"].detach(), torch.tensor([50.0, 0]), torch.tensor([0, 50.0]))]
    assert at[0] > at[1] + 1e-3 and at[0] > at[2] + 1e-3
    assert 0.05 < problem.router["logits"].softmax(0)[1] < 0.95, "no collapse to one target"
    with pytest.raises(ValueError, match="needs at least 2 samples"):
        slope(problem, problem.router, {"t": torch.zeros(1)})


def test_noise_of_the_average() -> None:
    """Of looks that are noise alone, the mean of the ratio over 60 series is 1 to 15 %, and none is resolved; a signal of twice the noise is."""
    router, rng = nn.Linear(4, 4), torch.Generator().manual_seed(0)
    ratios, falsely, rightly = [], 0, 0
    for _ in range(60):
        noise, signal = (Lookahead(router, 1, 0.9) for _ in range(2))
        for _ in range(30):
            drawn = torch.randn(20, generator=rng)
            noise.add(drawn)
            signal.add(drawn + 2)
        ratios.append(noise.averaged()[1])
        falsely, rightly = falsely + noise.resolved(), rightly + signal.resolved()
    assert np.mean(ratios) == pytest.approx(1, rel=0.15)
    assert falsely == 0 and rightly == 60
    young = Lookahead(router, 1, 0.9)
    for _ in range(LEAST - 1):
        young.add(torch.ones(20))
    assert not young.resolved()


def test_in_the_trainer(tmp_path: Path) -> None:
    """The router stays until its looks are resolved, whatever the alignment loss would have it do; resumed bit for bit, averages included."""
    words = ("--preset", "smoke", "--trackers", "none", "--log-every", 1, "--save-every", 100, "--router-every", 1, "--alignment.router", "lookup")
    words = (*words, "--alignment.router-objective", "lookahead", "--alignment.lookahead-every", 1, "--steps", 4)
    assert call(main, *words, "--out", tmp_path / "whole") == 0
    router = lines(tmp_path / "whole" / "router.jsonl")
    assert len(router) == 5 and all(line["beta"] == router[0]["beta"] for line in router)
    ahead = checkpoint.load(tmp_path / "whole", "raw").alignment.ahead
    assert int(ahead.looks) == 4 and bool(ahead.mean.any())
    assert call(main, *words[:-1], 2, "--out", tmp_path / "parts") == 0
    assert call(main, *words, "--out", tmp_path / "parts", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 4)


def test_refusal() -> None:
    with pytest.raises(ValueError, match=r"alignment.router_objective lookahead: router 'fixed' learns nothing"):
        made("ahpa", router="fixed", router_objective="lookahead")
    with pytest.raises(ValueError, match=r"alignment.entropy 0.1: has no part in"):
        made("ahpa", entropy=0.1, router_objective="lookahead")
