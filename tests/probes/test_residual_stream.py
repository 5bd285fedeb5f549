"""The residual stream's probe: gates against finite differences, a change of gauge, the ridge against a closed form, plain and routed runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gsnr import table
from gsnr.probes import residual_stream
from gsnr.probes.common.command import main as probe
from gsnr.probes.common.stream import traced
from gsnr.train.command import main as train
from gsnr.train.models.sit import SiT
from tests.conftest import call

SMALL = {"input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 8, "depth": 2, "num_heads": 2, "num_classes": 3}


def model_of(**options: Any) -> SiT:
    """In float64, with no weight at zero and LayerNorms without eps."""
    model, generator = SiT(**SMALL, **options).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 0.0
    return model


def given(samples: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.rand(samples, generator=generator, dtype=torch.float64), torch.arange(samples) % 3


def loss_of(velocity: Tensor) -> Tensor:
    return velocity.square().flatten(1).mean(1)


@pytest.mark.parametrize(
    "options", [{}, {"residual": "dar", "chunk": 2}, {"residual": "dar", "chunk": 2, "queries": "dynamic", "final": "summaries"}]
)
def test_the_trace_is_the_model(options: dict[str, Any]) -> None:
    model, inputs = model_of(**options), given()
    trace = traced(model, *inputs)
    velocity, hidden = model.forward_with_taps(*inputs, taps=(1, 2))
    torch.testing.assert_close(trace.velocity, velocity, rtol=1e-12, atol=1e-13)
    for k, h in hidden.items():
        torch.testing.assert_close(trace.left[k - 1], h, rtol=1e-12, atol=1e-13)
    for number, weights in enumerate(trace.weights, start=1):
        assert weights.shape[-1] == len(residual_stream.sources_of(model, number))


def test_gates_against_finite_differences() -> None:
    """dL/dg of what a sublayer reads, scaled by g = 1 +- 1e-4 on the way into that sublayer alone."""
    model, inputs = model_of(), given()
    trace = traced(model, *inputs)
    gates = residual_stream.of_trace(trace, loss_of(trace.velocity))["gates"]
    c = model.t_embedder(inputs[1]) + model.y_embedder(inputs[2], None)

    def gated(at: int, source: int, g: float) -> Tensor:
        h = written = model.x_embedder(inputs[0]) + model.pos_embed
        outputs = [written]
        for number in range(1, 5):
            block, half = model.blocks[(number - 1) // 2], ("attention", "mlp")[(number - 1) % 2]
            read = h + (g - 1) * outputs[source] if number == at else h
            outputs.append(block(read, block.adaLN_modulation(c), half))
            h = h + outputs[-1]
        return loss_of(model.unpatchify(model.final_layer(h, c)))

    for at, source in ((1, 0), (2, 1), (4, 0), (4, 3)):
        expected = (gated(at, source, 1 + 1e-4) - gated(at, source, 1 - 1e-4)) / 2e-4
        torch.testing.assert_close(gates[:, at - 1, source], expected, rtol=1e-6, atol=1e-9)
    assert (gates[:, 0, 1:] == 0).all(), "no sublayer reads what is not written yet"


def test_a_change_of_gauge_moves_sizes_and_not_their_companions() -> None:
    """The whole stream times c, by embedding and gates: the same function, sizes times c, gradients over c."""
    model, inputs, c = model_of(), given(), 10.0
    found = []
    for _ in range(2):
        trace = traced(model, *inputs)
        found.append((trace.velocity.detach(), residual_stream.of_trace(trace, loss_of(trace.velocity))))
        with torch.no_grad():
            model.x_embedder.proj.weight.mul_(c)
            model.x_embedder.proj.bias.mul_(c)
            model.pos_embed.mul_(c)
            for block in model.blocks:
                for part in (slice(16, 24), slice(40, 48)):  # gates of attention and MLP among shift, scale, gate of 8 each
                    block.adaLN_modulation[1].weight[part] *= c
                    block.adaLN_modulation[1].bias[part] *= c
    (v, was), (w, now) = found
    torch.testing.assert_close(v, w, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(now["rms"], was["rms"] * c**2)
    torch.testing.assert_close(now["gradient_rms"], was["gradient_rms"] / c**2)
    for name in ("attention_share", "mlp_share", "token_cosine"):
        torch.testing.assert_close(now[name], was[name])


def test_the_ridge_finds_the_share_that_is_there() -> None:
    """h = t u + noise with ||u|| = 1: R^2 -> var t / (var t + sigma^2); and no image on two sides."""
    generator = np.random.default_rng(0)
    images, bins, sigma = 6000, 4, 0.3
    t = generator.uniform(size=images * bins)
    u = np.ones(8) / np.sqrt(8)
    h = t[:, None] * u + sigma * generator.normal(size=(len(t), 8))
    found = residual_stream.readability(h, t, np.tile(np.arange(images), bins))
    expected = (1 / 12) / (1 / 12 + sigma**2)
    assert found["low"] < expected < found["high"] and found["high"] - found["low"] < 0.04
    own = generator.normal(size=(images, 40))  # features of the image alone say nothing of t
    assert residual_stream.readability(np.tile(own, (bins, 1)), t, np.tile(np.arange(images), bins))["value"] < 0.02


@pytest.mark.parametrize("residual", ["standard", "dar"])
def test_it_runs_on_a_plain_and_on_a_routed_run(residual: str, plain_run: Path, tmp_path: Path) -> None:
    run = plain_run
    if residual == "dar":
        run = tmp_path / "run"
        words = ("--preset", "smoke", "--alignment", "none", "--model.residual", "dar", "--model.chunk", 2, "--steps", 2, "--trackers", "none")
        assert call(train, *words, "--out", run) == 0
    assert call(probe, "--ckpt", run, "--probe", "residual_stream", "--bins", 2, "--n-images", 8, "--out", tmp_path / "out") == 0
    rows = table.read(tmp_path / "out" / "residual_stream.parquet")
    every = {"rms", "gradient_rms", "gauge_free", "attention_share", "mlp_share", "token_cosine", "t_readability"}
    assert set(rows["metric"]) == every | ({"gate_gradient"} if residual == "standard" else {"routing_weight", "routing_entropy"})
    if residual == "dar":
        weights = rows[rows["metric"] == "routing_weight"]
        sums = weights.groupby(["bin", "group"])["value"].sum()
        np.testing.assert_allclose(sums, 1, rtol=1e-6)
        assert set(weights.loc[weights["group"] == "final", "target"]) == {"embedding", "chunk 1", "chunk 2", "attention 3", "mlp 3"}
