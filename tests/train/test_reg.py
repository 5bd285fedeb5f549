"""REG: a class token denoised beside the latent. Sizes, bits without it, losses, per-sample gradients, sampling, and what is refused."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import gsnr
from gsnr import plugins
from gsnr.train import optimizer, presets, samplers
from gsnr.train.config import CLASS_TOKEN, ModelConfig, OptimConfig, resolve
from gsnr.train.contracts.problem import GROUPS, MODEL, batch_of, in_views, made
from gsnr.train.cost import main as cost
from gsnr.train.costing import counts
from gsnr.train.guidance import Guidance, velocity_of
from gsnr.train.models.layers import sincos_2d
from gsnr.train.models.sit import SiT, extra_of
from gsnr.train.noising import losses, noised
from gsnr.train.objective import Objective
from gsnr.train.step import optimisation_step
from tests.train.in_numpy import f64, mlp, numpy_cosine, tokens

E = 7  # channels of the class token
WITH = ModelConfig(**(vars(MODEL) | {"extra_token": E}))
ITS_GROUPS = GROUPS | {CLASS_TOKEN: (1, E, 1, 1)}


def sit(seed: int = 0, extra: int | None = E, **changes: int) -> SiT:
    torch.manual_seed(seed)
    model = SiT(**(MODEL.options | {"extra_token": extra} | changes))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def batch(b: int = 4, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed + 50)
    token = {CLASS_TOKEN: torch.randn(b, 1, E, 1, 1, generator=g).half(), "extra_noise": torch.randn(b, E, generator=g)}
    return batch_of(b, seed) | token | {"label_drop": torch.zeros(b, dtype=torch.bool)}


def objective(name: str = "repa", weight: float = 0.03, **options: object) -> Objective:
    model = sit()
    torch.manual_seed(5)
    return Objective(model, made(name, WITH, ITS_GROUPS, **options), weight)


def digest(tensors: list[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def test_without_it_sit_is_what_it_was() -> None:
    """Golden: parameters and random state after initialisation, from before there was an extra token; and a forward pass, part by part."""
    torch.manual_seed(3)
    model = SiT(input_size=4, patch_size=2, hidden_size=16, depth=3, num_heads=2, num_classes=5)
    assert digest(list(model.state_dict().values())) == "001d879b02fe43d01f5f4f3f9218b71525784a2b74e068bdbcb5a0efe8f6f441"
    assert digest([torch.random.get_rng_state()]) == "a62d51aa2ab5ee0209a19cbb94883dd8a81acd8da348d8694e13cdb1b19c7221"
    model, x, t, y = sit(extra=None), torch.randn(3, 4, 4, 4), torch.rand(3), torch.tensor([0, 4, 5])
    h, c = model.x_embedder(x) + sincos_2d(2, 8), model.t_embedder(t) + model.y_embedder(y, None)
    for block in model.blocks:
        h = block(h, c)
    assert torch.equal(model(x, t, y), model.unpatchify(model.final_layer(h, c)))


def test_with_it_the_rest_starts_as_without() -> None:
    torch.manual_seed(3)
    plain = SiT(**MODEL.options).state_dict()
    torch.manual_seed(3)
    token = SiT(**WITH.options).state_dict()
    assert all(torch.equal(token[name], value) for name, value in plain.items() if name != "pos_embed")
    assert torch.equal(token["pos_embed"][:, 1:], plain["pos_embed"]) and not token["pos_embed"][:, 0].any()
    assert not token["final_layer.extra.weight"].any() and token["extra_embedder.proj.weight"].any()


@pytest.mark.parametrize(("size", "millions"), [("b2", 1.183), ("l2", 1.577), ("xl2", 1.774)])
def test_parameters(size: str, millions: float) -> None:
    """REG's, as published; the head of REPA is the same, and an image takes 768 float16 more."""
    plain, token = (resolve(presets.find(f"{row}-{size}")) for row in ("repa", "reg"))
    (model, head), (with_token, its_head) = (
        [sum(p.numel() for p in part.parameters()) for part in (raw.model, raw.alignment)]
        for raw in (counts.objective_of(config, "meta") for config in (plain, token))
    )
    assert round((with_token - model) / 1e6, 3) == millions and its_head == head
    assert counts.bytes_of_an_image(token) - counts.bytes_of_an_image(plain) == 2 * 768


def test_cost_shows_them(capsys: pytest.CaptureFixture) -> None:
    cost(["--size", "demo", "--rows", "repa,reg", "--macs-only", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    extra = 2 * 96 * 128 + 3 * 96 + 128
    assert rows["reg"]["backbone_parameters"] - rows["repa"]["backbone_parameters"] == extra
    assert rows["reg"]["alignment_parameters"] == rows["repa"]["alignment_parameters"]
    assert 1 < rows["reg"]["backbone_macs"] / rows["repa"]["backbone_macs"] < 1.05
    assert rows["reg"]["alignment_macs"] * 64 == rows["repa"]["alignment_macs"] * 65  # tokens


def test_presets() -> None:
    for size, tap in (("b2", 4), ("l2", 8), ("xl2", 8)):
        config = resolve(presets.find(f"reg-{size}"))
        assert (config.alignment["tap"], config.alignment["weight"], config.alignment["class_token"]) == (tap, 0.5, True)
        assert (config.model.extra_token, config.class_token_weight, config.optim.lr) == (768, 0.03, 1e-4)
    assert resolve(presets.find("reg-demo")).model.extra_token == 128


def test_losses_in_numpy() -> None:
    """The class token: noised at the image's t with its own noise; REPA over T + 1 tokens, the class token first."""
    raw, given = objective(class_token=True, projector_width=16), batch()
    found = raw(given)
    t, cls, e = f64(given["t"])[:, None], f64(given[CLASS_TOKEN])[:, 0, :, 0, 0], f64(given["extra_noise"])
    _, extra = noised(raw.model, given)
    np.testing.assert_allclose(f64(extra), (1 - t) * cls + t * e, rtol=1e-5, atol=1e-6)
    x_t = (1 - given["t"]).view(-1, 1, 1, 1) * given["latent"] + given["t"].view(-1, 1, 1, 1) * given["noise"]
    (_, v), taps = raw.model.forward_with_taps(x_t, given["t"], given["label"], taps=(1,), extra=extra)
    np.testing.assert_allclose(f64(found["class_token"]), ((f64(v) - (e - cls)) ** 2).mean(1), rtol=1e-4)
    for b in range(4):
        h = np.concatenate([f64(taps[extra_of(1)][b]), f64(taps[1][b])])
        y = np.concatenate([cls[b : b + 1], tokens(f64(given["teacher"][b, 0]))])
        assert h.shape == (5, 8)
        z = mlp(raw.alignment.state_dict(), "projector.mlp", h, 3)
        assert float(found["align"][b].detach()) == pytest.approx(numpy_cosine(z, y), rel=1e-4)


def one_step(raw: Objective) -> dict[str, Tensor]:
    accelerator = Accelerator(cpu=True)
    wrapped, adamw = accelerator.prepare(raw, optimizer.make(raw, OptimConfig(lr=1e-2)))
    return optimisation_step(accelerator, wrapped, raw, Objective(sit(5), made("none")), adamw, batch(), 1.0, 2)


def test_the_loss_of_a_step_and_a_weight_of_none() -> None:
    """An alignment of weight 0 leaves the model where `none` does, bit for bit; a class token of weight 0 does not learn."""
    metrics = one_step(objective(weight=0.1, class_token=True))
    assert float(metrics["loss"]) == pytest.approx(float(metrics["velocity"] + 0.5 * metrics["align"] + 0.1 * metrics["class_token"]), rel=1e-5)
    pair = [objective(weight=0.0), objective("none")]
    for raw in pair:
        raw.alignment.weight = 0.0
        one_step(raw)
    zero, none = (raw.model.state_dict() for raw in pair)
    assert torch.equal(zero["final_layer.extra.weight"], sit().state_dict()["final_layer.extra.weight"])
    assert not torch.equal(none["final_layer.extra.weight"], zero["final_layer.extra.weight"])
    aligned = objective(class_token=True)
    aligned.alignment.weight = 0.0
    one_step(aligned)
    assert all(torch.equal(value, none[name]) for name, value in aligned.model.state_dict().items())


def test_a_sample_is_its_own_and_no_gradient_reaches_the_teacher() -> None:
    raw, one, other = objective(class_token=True), batch(), batch(seed=1)
    mixed = {key: torch.cat([x[:2], other[key][2:]]) for key, x in one.items()}
    for name, value in raw(one).items():
        torch.testing.assert_close(raw(mixed)[name][:2], value[:2], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(raw(mixed)[name][2:], value[2:])
    leaves = {key: one[key].float().requires_grad_(True) for key in ("teacher", CLASS_TOKEN)}
    sum(value.sum() for value in raw(one | leaves).values()).backward()
    assert all(leaf.grad is None for leaf in leaves.values())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in raw.parameters())


@pytest.mark.parametrize("name", [name for name in plugins.names("alignments") if name not in ("none", "disperse", "multi")])
def test_every_alignment_runs_on_such_a_model(name: str) -> None:
    """On the patches alone."""
    raw = objective(name)
    views = raw.alignment.views
    with torch.no_grad():
        ready = raw.alignment.prepare(in_views(batch(), views), sit(5))
    found = raw(ready)
    assert tuple(found) == ("velocity", "class_token", "align") and found["align"].shape == (4,)
    assert all(found[of].shape == ((4,) if views == 1 else (4, views)) for of in ("velocity", "class_token"))


@pytest.mark.parametrize("name", ["velocity", "class_token", "align"])
def test_the_engines_agree(name: str) -> None:
    raw = objective(class_token=True, projector_width=16).eval()
    for p in raw.alignment.parameters():
        nn.init.normal_(p, std=0.15)
    norms = {}
    for engine in ("loop", "vmap", "ghost"):
        result = gsnr.measure(raw, lambda model, given: model(given)[name], [batch()], engine=engine, interval=False, groups=lambda key: key)
        norms[engine] = {group: result[group].q_n for group in result.groups}
    for engine in ("vmap", "ghost"):
        for group, q_n in norms["loop"].items():
            np.testing.assert_allclose(norms[engine][group], q_n, rtol=1e-3, atol=1e-6 * norms["loop"]["all"].max())


MEAN, SPREAD = np.array([0.5, -1.0]), np.array([[0.5, 0.3], [0.3, 0.4]])  # of a latent's cell and of its channel of the class token


def toy(state: tuple[Tensor, Tensor], t: float) -> tuple[Tensor, Tensor]:
    """E[eps - z_0 | z_t] of pairs z_0 ~ N(MEAN, SPREAD): v = -m + (t I - (1-t) S) ((1-t)^2 S + t^2 I)^-1 (z_t - (1-t) m)."""
    x, cls = state
    z = torch.stack([x.flatten(1), cls], dim=-1)
    mean, s = torch.from_numpy(MEAN), torch.from_numpy(SPREAD)
    eye = torch.eye(2, dtype=torch.float64)
    gain = (t * eye - (1 - t) * s) @ torch.linalg.inv((1 - t) ** 2 * s + t**2 * eye)
    v = -mean + (z - (1 - t) * mean) @ gain.T
    return v[..., 0].view_as(x), v[..., 1]


@pytest.mark.parametrize("name", plugins.names("samplers"))
def test_joint_sampling_of_a_gaussian(name: str) -> None:
    """16 samples of 256 pairs; 5 standard errors, and what 200 steps and the SDE's last step leave."""
    shape, numbers = (1, 16, 16), np.arange(16)
    noise = samplers.noise_of(0, numbers, shape, extra=256)
    x, cls = samplers.integrate(name, toy, noise(0), 200, noise)
    assert x.shape == (16, *shape) and cls.shape == (16, 256) and x.dtype == cls.dtype == torch.float64
    z = np.stack([x.flatten().numpy(), cls.flatten().numpy()])
    np.testing.assert_allclose(z.mean(1), MEAN, atol=0.06)
    np.testing.assert_allclose(np.cov(z), SPREAD, atol=0.06)
    again = samplers.noise_of(0, numbers[3:5], shape, extra=256)
    assert plugins.constant("samplers", name, "TOGETHER") > 1 or all(
        torch.equal(one, two[3:5]) for one, two in zip(samplers.integrate(name, toy, again(0), 200, again), (x, cls), strict=True)
    )


@pytest.mark.parametrize("name", plugins.names("samplers"))
def test_the_latents_are_those_of_a_lone_state(name: str) -> None:
    """Where the class token does not matter: the same noise, steps and bits (dopri5 chooses its steps by both)."""
    shape, numbers = (2, 4, 4), np.arange(3)
    alone, both = samplers.noise_of(1, numbers, shape), samplers.noise_of(1, numbers, shape, extra=5)
    assert torch.equal(alone(4), both(4)[0]) and not torch.equal(both(4)[1], both(5)[1])
    plain = samplers.integrate(name, lambda x, t: x * (0.5 + t), alone(0), 10, alone)
    pair = samplers.integrate(name, lambda s, t: (s[0] * (0.5 + t), -s[1]), both(0), 10, both)
    close = {"rtol": 1e-3, "atol": 1e-5} if name == "dopri5" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(samplers.latents_of(pair), plain, **close)


def test_guidance_of_the_class_token() -> None:
    """v_null + w (v_class - v_null), each with its own weight and interval; by default that of the latents."""
    model, y = sit().double(), torch.tensor([0, 3])
    state = torch.randn(2, 4, 4, 4).double(), torch.randn(2, E).double()

    def passed(label: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return model(state[0], torch.full((2,), t).double(), label, extra=state[1])

    def guided(t: float, of_latents: float, of_token: float, by: Guidance) -> None:
        with torch.no_grad():
            expected = [n + w * (c - n) for w, c, n in zip((of_latents, of_token), passed(y, t), passed(torch.tensor([5, 5]), t), strict=True)]
            for found, value in zip(velocity_of(model, y, by)(state, t), expected, strict=True):
                torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)

    published = Guidance(weight=2.3, high=0.85)
    guided(0.5, 2.3, 2.3, published)
    guided(0.9, 1.0, 1.0, published)
    own = Guidance(weight=2.3, high=0.4, token=Guidance(weight=1.5, low=0.2, high=0.85))
    guided(0.1, 2.3, 1.0, own)
    guided(0.3, 2.3, 1.5, own)
    guided(0.6, 1.0, 1.5, own)
    assert own.at(0.6) and not own.at(0.9)


def test_what_a_model_is_not_given_is_said() -> None:
    x, t, y = torch.zeros(1, 4, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="this model has an extra token"):
        sit()(x, t, y)
    with pytest.raises(ValueError, match="this model has no extra token"):
        sit(extra=None)(x, t, y, extra=torch.zeros(1, E))
    with pytest.raises(ValueError, match=r"alignment.class_token: this model has no class token; give it one with --model.extra-token"):
        made("repa", MODEL, ITS_GROUPS, class_token=True)
    assert tuple(losses(sit(extra=None)(x, t, y), {"latent": x, "noise": x})) == ("velocity",)
    assert made("repa", WITH, ITS_GROUPS, class_token=True).config.over_patches().needs == ("teacher",)
