"""The arithmetic of a measurement of several targets against PyTorch's count of what `gsnr.compare` really multiplies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gsnr
from gsnr.probes.common.account import account
from gsnr.train.models.sit import SiT
from tests.benchmarks import account as benchmark
from tests.conftest import REPO

N, TAP, HEADS = 96, 1, 2


class Aligned(nn.Module):
    def __init__(self, sit: SiT) -> None:
        super().__init__()
        self.sit, self.heads = sit, nn.ModuleList(nn.Linear(32, 24) for _ in range(HEADS))


def test_against_counted_flops() -> None:
    """Within 6 %: the count holds the spot checks (a sample or two for each loss), embeddings and modulation, the arithmetic only layers."""
    torch.manual_seed(0)
    model = Aligned(SiT(input_size=16, patch_size=2, in_channels=4, hidden_size=32, depth=3, num_heads=2, num_classes=3))
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    batch = {"x": torch.randn(N, 4, 16, 16), "t": torch.rand(N), "y": torch.randint(3, (N,)), "v": torch.randn(N, 4, 16, 16)}

    def common(m: Any, b: dict[str, Tensor], stop: bool = False) -> Any:
        return m.sit.forward_with_taps(b["x"], b["t"], b["y"], taps=(TAP,), stop=stop)

    losses = {str(k): (lambda m, b, out, k=k: m.heads[k](out[1][TAP]).square().mean((1, 2))) for k in range(HEADS)}
    parameters = lambda name: name.startswith(("heads.", "sit.x_", "sit.t_", "sit.y_", "sit.blocks.0."))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        common(model, batch, stop=True)
        velocity = lambda m, b, out: (out[0] - b["v"]).square().flatten(1).mean(1)
        gsnr.compare(model, losses, velocity, [batch], engine="ghost", parameters=parameters, common=common)
    expected = account(model.sit, TAP, list(model.heads), N)
    assert counter.get_total_flops() / 2 == pytest.approx(expected.macs, rel=0.06)


def test_what_the_docs_say_of_xl2(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 6
    text = (REPO / "docs" / "costs.md").read_text()
    assert all(line in text for line in printed)
