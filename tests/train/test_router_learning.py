"""How a router learns: its rate, release, temperature and entropy; per-group cosines; centred and RMS-matched features.

Each against a closed form, and each without effect at its default.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gsnr.train import losses, optimizer, presets
from gsnr.train.command import main
from gsnr.train.config import OptimConfig, nest, resolve
from gsnr.train.contracts.problem import TrainSplit, alike, batch_of, hidden, made, randomised, sit, started
from gsnr.train.objective import Objective
from gsnr.train.priors.mixture import entropy, mix
from gsnr.train.runs import folder as runfolder
from tests.conftest import call
from tests.train.run_files import assert_same_run, lines, tensors


def f64(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def test_defaults_are_the_papers_target_and_loss_bit_for_bit() -> None:
    alignment, batch, h = randomised(made("ahpa")), batch_of(), hidden()
    weights = alignment.router(batch["t"], h)
    target = mix({"mid": batch["G3"].float(), "deep": batch["G4"].float()}, weights)
    assert torch.equal(alignment.loss({1: h}, batch), losses.cosine(alignment.projector(h), target))
    switched = randomised(made("ahpa", router_lr=10.0, release=5))
    assert torch.equal(alignment.loss({1: h}, batch), switched.loss({1: h}, batch)), "what the optimizer does is no part of the loss"


@pytest.mark.parametrize("options", [{"per_group": True}, {"entropy": 0.5}, {"temperature": 3.0}, {"features": "centre"}, {"features": "rms"}])
def test_a_samples_loss_is_its_own(options: dict) -> None:
    alignment, batch, h = started("ahpa", **options), batch_of(), hidden()
    other = {key: torch.cat([x[:1], batch_of(seed=1)[key][1:]]) for key, x in batch.items()}
    loss, changed = alignment.loss({1: h}, batch), alignment.loss({1: torch.cat([h[:1], h[1:] + 1])}, other)
    assert loss.shape == (3,) and alike(loss[:1], changed[:1]) and not alike(loss, changed)
    assert not alike(loss, started("ahpa").loss({1: h}, batch)), "the switch does something"


def test_temperature_divides_the_logits() -> None:
    t = torch.linspace(0, 1, 5)
    hot = randomised(made("ahpa", temperature=4.0))
    logits = f64(hot.router.logits(t, None)) / 4
    for name, x in zip(("mid", "deep", "beta"), np.split(logits, [4, 8], axis=1), strict=True):
        np.testing.assert_allclose(f64(hot.router_weights(t)[name]), np.exp(x) / np.exp(x).sum(1, keepdims=True), rtol=1e-5)


def test_entropy_of_known_mixtures() -> None:
    """Uniform over 2 x 4 layers: log 8. One layer: 0, with a finite gradient though the other weights are 0."""
    alpha, beta = torch.full((1, 4), 0.25), torch.full((1, 2), 0.5)
    assert entropy({"mid": alpha, "deep": alpha, "beta": beta}).item() == pytest.approx(np.log(8), rel=1e-6)
    logits = torch.tensor([[200.0, 0, 0, 0]], requires_grad=True)
    one = entropy({"mid": logits.softmax(-1), "deep": alpha, "beta": torch.tensor([[1.0, 0.0]])})
    one.sum().backward()
    assert one.item() == 0 and logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_entropy_comes_off_the_loss_and_reaches_the_router_alone() -> None:
    batch, grads, found = batch_of(), [], []
    for weight in (0.0, 0.3):
        alignment, h = randomised(made("ahpa", entropy=weight)), hidden().requires_grad_(True)
        found.append(alignment.loss({1: h}, batch))
        found[-1].sum().backward()
        grads.append({name: p.grad for name, p in alignment.named_parameters()} | {"h": h.grad})
    w = {name: f64(x) for name, x in alignment.router_weights(batch["t"]).items()}
    joint = np.concatenate([w["beta"][:, :1] * w["mid"], w["beta"][:, 1:] * w["deep"]], axis=1)
    np.testing.assert_allclose(f64(found[1] - found[0]), 0.3 * (joint * np.log(joint)).sum(1), rtol=1e-4)
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]) != name.startswith("router."), name


def test_per_group_loss_in_numpy_and_its_slope_in_beta() -> None:
    alignment, batch, h = randomised(made("ahpa", per_group=True)), batch_of(), hidden()
    weights = {name: w.detach().requires_grad_(True) for name, w in alignment.router_weights(batch["t"]).items()}
    loss = alignment.discrepancy(alignment.projector(h), alignment.mixture(batch, weights))
    torch.testing.assert_close(loss, alignment.loss({1: h}, batch))
    (slope,) = torch.autograd.grad(loss.sum(), weights["beta"])
    z = f64(alignment.projector(h))
    for b in range(3):
        each = []
        for g, (name, group) in enumerate((("mid", "G3"), ("deep", "G4"))):
            y = np.einsum("l,lcij->ijc", f64(weights[name][b]), f64(batch[group][b])).reshape(4, 6)
            zg = z[b, :, 6 * g : 6 * g + 6]
            each.append(1 - np.mean((zg * y).sum(1) / np.linalg.norm(zg, axis=1) / np.linalg.norm(y, axis=1)))
        assert f64(loss[b]) == pytest.approx(f64(weights["beta"][b]) @ each, rel=1e-4)
        np.testing.assert_allclose(f64(slope[b]), each, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_where_per_group_beta_comes_to_rest(weight: float) -> None:
    """All on the group with the smaller loss; with entropy, beta_g as exp(-(1 - cos_g) / W + H_g)."""
    alignment, batch, h = randomised(made("static", per_group=True, entropy=weight)), batch_of(1), hidden(1)
    adam = torch.optim.Adam(alignment.router.parameters(), lr=0.1)
    for _ in range(150):
        adam.zero_grad()
        alignment.loss({1: h}, batch).sum().backward()
        adam.step()
    w = {name: x.detach() for name, x in alignment.router_weights(batch["t"]).items()}
    each = []
    for g in range(2):
        only = torch.eye(2)[g : g + 1]
        each.append(alignment.discrepancy(alignment.projector(h), alignment.mixture(batch, w | {"beta": only})).item())
    if not weight:
        assert w["beta"][0, int(np.argmin(each))] > 0.99
        return
    within = [float(-(w[name] * w[name].log()).sum()) for name in ("mid", "deep")]
    expected = np.exp(-np.array(each) / weight + within)
    np.testing.assert_allclose(f64(w["beta"][0]), expected / expected.sum(), rtol=2e-3)


def test_centred_and_rms_matched_features_in_numpy() -> None:
    statistics, batch = TrainSplit().statistics(), batch_of()
    for features in ("centre", "rms"):
        alignment = made("uniform", source="G4", features=features)
        assert torch.isnan(alignment.target(batch, hidden())).all(), "never calibrated, they do not pass for it"
        alignment.calibrate(TrainSplit())
        mean, std = (statistics[f"G4_{which}"].astype(float) for which in ("mean", "std"))
        f = f64(batch["G4"])
        expected = f - mean[..., None, None] if features == "centre" else f / np.sqrt((mean**2 + std**2).mean(1))[:, None, None, None]
        np.testing.assert_allclose(f64(alignment.normalised("G4", batch["G4"].float())), expected, rtol=1e-5, atol=1e-5)


def test_rms_of_a_layer_that_is_zero_stays_zero() -> None:
    class Dead(TrainSplit):
        def statistics(self) -> dict:
            return {name: x * (np.arange(len(x)) > 0)[:, None] for name, x in super().statistics().items()}

    alignment = made("uniform", source="G4", features="rms")
    alignment.calibrate(Dead())
    found = alignment.normalised("G4", torch.zeros(1, 4, 6, 2, 2))
    assert torch.equal(found, torch.zeros_like(found))


def step(objective: Objective, adamw: torch.optim.AdamW, number: int, optim: OptimConfig) -> dict[str, Tensor]:
    """One step without clipping; how far each parameter went."""
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    adamw.zero_grad(set_to_none=True)
    objective(batch_of() | {"label_drop": torch.zeros(3, dtype=torch.bool)})["align"].sum().backward()
    optimizer.hold(objective.alignment.held(number))
    optimizer.set_rate(adamw, optim, number)
    adamw.step()
    return {name: p.detach() - before[name] for name, p in objective.named_parameters()}


def test_the_routers_rate_and_release() -> None:
    """AdamW's first step of a parameter is its rate, whatever the gradient: common x 10 for the router, and only once it is released."""
    objective, optim = Objective(sit(), randomised(made("ahpa", router_lr=10.0, release=2))), OptimConfig(lr=1e-4, warmup=4)
    adamw = optimizer.make(objective, optim)
    bias = "alignment.router.mlp.6.bias"
    for number in (1, 2):
        went = step(objective, adamw, number, optim)
        assert not any(x.any() for name, x in went.items() if "router" in name), "held"
        assert not any(adamw.state[p] for p in objective.alignment.router.parameters()), "AdamW knows nothing of it"
        if number == 1:
            torch.testing.assert_close(went["alignment.projector.conv.0.bias"].abs(), torch.full((12,), 1e-4 / 4), rtol=1e-2, atol=0)
    went = step(objective, adamw, 3, optim)
    torch.testing.assert_close(went[bias].abs(), torch.full((10,), 1e-3 * 3 / 4), rtol=1e-2, atol=0)
    assert optimizer.names(objective, adamw)[-1].startswith("alignment.router.") and len(adamw.param_groups) == 2
    assert set(optimizer.names(objective, adamw)) == {name for name, _ in objective.named_parameters()}


def test_multi_asks_for_its_parts() -> None:
    parts = [{"name": "ahpa", "tap": 1, "router_lr": 3.0, "release": 2}, {"name": "static", "tap": 2, "router_lr": 3.0}]
    alignment = made("multi", parts=tuple(parts))
    one, two = (list(part.router.parameters()) for part in alignment.parts)
    assert {factor: list(map(id, ps)) for factor, ps in alignment.rates.items()} == {3.0: list(map(id, one + two))}
    assert list(map(id, alignment.held(2))) == list(map(id, one)) and alignment.held(3) == []


def test_release_resumes_bit_for_bit_and_the_log_shows_it(tmp_path: Path) -> None:
    words = ("--preset", "smoke", "--trackers", "none", "--alignment.release", 4, "--alignment.router-lr", 10, "--router-every", 1, "--out")
    assert call(main, *words, tmp_path / "whole", "--steps", 6) == 0
    assert call(main, *words, tmp_path / "parts", "--steps", 3) == 0
    assert not any("router" in name and "optimizer" in name for name in tensors(tmp_path / "parts" / "checkpoints" / "0000003"))
    assert call(main, *words, tmp_path / "parts", "--steps", 6, "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6)
    log = lines(tmp_path / "whole" / "router.jsonl")
    assert [x["step"] for x in log] == [0, 1, 2, 3, 4, 5, 6]
    assert all(x["beta"] == log[0]["beta"] for x in log[:5]) and log[5]["beta"] != log[0]["beta"]
    assert [x["step"] for x in lines(tmp_path / "whole" / "metrics.jsonl")] == [5]


def test_a_run_from_before_these_options_goes_on(tmp_path: Path) -> None:
    """Options that its config.json does not know have their defaults, and no other value."""
    config = resolve(presets.find("smoke"))
    old = json.loads(json.dumps(asdict(config)))
    for key in ("router_lr", "release", "temperature", "entropy", "per_group"):
        del old["alignment"][key]
    del old["router_every"]
    (tmp_path / "config.json").write_text(json.dumps({"config": old}))
    runfolder.check(tmp_path, config, resume=True)
    runfolder.check(tmp_path, resolve(presets.find("smoke"), nest({"router_every": "1"})), resume=True)
    with pytest.raises(ValueError, match=r"alignment.release was 0 in .*config.json, now 3"):
        runfolder.check(tmp_path, resolve(presets.find("smoke"), nest({"alignment.release": "3"})), resume=True)


def test_switches_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"alignment.per_group: needs loss cosine and beta softmax, not l1 and softmax"):
        made("uniform", per_group=True, loss="l1")
    with pytest.raises(ValueError, match=r"alignment.entropy 0.1: is of weights that sum to 1; choose alignment.beta softmax, not sigmoid"):
        made("ahpa", entropy=0.1, beta="sigmoid")
