"""REPI: keys and values given to a block, their maps, the switch from one phase to the other, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gsnr.train import optimizer, presets
from gsnr.train.config import ModelConfig, OptimConfig, TrainConfig, resolve, resolve_alignment
from gsnr.train.contracts.problem import GROUPS, MODEL, batch_of, made, prepared, randomised, sit, teacher
from gsnr.train.feedback import check_aligned
from gsnr.train.models.sit import SiT
from gsnr.train.objective import Objective
from gsnr.train.step import optimisation_step
from gsnr.train.trainer import make_accelerator
from tests.train.in_numpy import f64
from tests.train.sit_written_out import reference_forward

INPUTS = {"x": torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), "t": torch.tensor([0.2, 0.9]), "y": torch.tensor([1, 5])}
LAST, SCAFFOLD = 12, 3  # layer of the teacher; steps


def routed(**options: object) -> SiT:
    torch.manual_seed(2)
    model = SiT(**replace(MODEL, **options).options)  # type: ignore[arg-type]
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def test_a_forward_pass_with_keys_and_values_given_against_matrix_products() -> None:
    """In float64, at t = 0, where the frequencies of the timestep, which are in float32, play no part."""
    model = sit().double()
    given = [torch.randn(2, 4, 8, dtype=torch.float64) for _ in range(2)]
    inputs = INPUTS | {"x": INPUTS["x"].double(), "t": torch.zeros(2, dtype=torch.float64)}
    expected = reference_forward(model.state_dict(), **inputs, heads=2, patch=2, replaced={2: (given[0], given[1])})
    velocity, hidden = model.forward_with_taps(**inputs, taps=(-2,), replaced={2: torch.cat(given, -1)})
    torch.testing.assert_close(velocity, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(hidden[-2][..., 8:], torch.cat(given, -1)) and not torch.allclose(expected, model(**inputs))


@pytest.mark.parametrize("options", [{}, {"residual": "dar"}, {"extra_token": 7}], ids=["plain", "routed", "class token"])
def test_a_blocks_own_keys_and_values_in_their_place_change_no_bit(options: dict) -> None:
    """Nor of the gradients with recomputed activations. A class token keeps its own."""
    model = routed(chunk=2, **options)
    inputs = INPUTS | ({"extra": torch.randn(2, 7)} if "extra_token" in options else {})
    velocity, hidden = model.forward_with_taps(**inputs, taps=(-2,))
    grads = []
    for recompute in (False, True):
        model.checkpointing = recompute
        kv = hidden[-2][..., 8:].detach().requires_grad_(True)
        given, _ = model.forward_with_taps(**inputs, replaced={2: kv})
        pairs = [(given, velocity)] if isinstance(given, Tensor) else zip(given, velocity, strict=True)  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in pairs)
        model.zero_grad()
        (given if isinstance(given, Tensor) else given[0]).square().sum().backward()  # type: ignore[index]
        assert kv.grad is not None and kv.grad.abs().sum() > 0
        grads.append([kv.grad, *(p.grad for p in model.parameters())])
    assert all(a is b or torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_keys_and_values_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="tap 4 does not exist: this model has blocks 1 to 3"):
        sit().forward_with_taps(**INPUTS, replaced={4: torch.zeros(2, 4, 16)})
    for k, shape in ((2, (2, 4, 8)), (2, (2, 5, 16)), (-2, (2, 4, 16))):
        with pytest.raises(ValueError, match=rf"keys and values of block {k}: have shape .*, not \(2, 4, 16\)"):
            sit().forward_with_taps(**INPUTS, replaced={k: torch.zeros(shape)})


def by_hand(state: dict[str, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values made of the teacher's, which are of its last layer."""
    _, k, v = teacher().qkv(batch["picture"], (LAST,), 2)[LAST].to(state["keys.weight"].dtype).chunk(3, -1)
    return k @ state["keys.weight"].T + state["keys.bias"], v @ state["values.weight"].T + state["values.bias"]


def test_the_loss_in_numpy() -> None:
    alignment = randomised(made("repi", tap=2))
    assert alignment.taps == (2, -2)
    batch, own = batch_of(), torch.randn(3, 4, 24)
    got = f64(alignment.loss({-2: own}, prepared(alignment, batch)))
    wanted_k, wanted_v = (f64(x) for x in by_hand({key: p.double() for key, p in alignment.state_dict().items()}, batch))
    for b in range(3):
        expected = ((f64(own[b, :, 8:16]) - wanted_k[b]) ** 2).mean() + ((f64(own[b, :, 16:]) - wanted_v[b]) ** 2).mean()
        assert got[b] == pytest.approx(expected, rel=1e-5)


def objective(name: str = "repi", **options: object) -> Objective:
    model = sit()
    return Objective(model, randomised(made(name, **({"tap": 2, "scaffold": SCAFFOLD} | options if name == "repi" else options))))


def step_of(raw: Objective, step: int, clip: float = 1.0) -> dict[str, Tensor]:
    """The metrics of one step of training, in two micro-batches."""
    batch, accelerator = batch_of(4) | {"label_drop": torch.zeros(4, dtype=torch.bool)}, Accelerator(cpu=True)
    wrapped, adamw = accelerator.prepare(raw, optimizer.make(raw, OptimConfig(lr=1e-2)))
    return optimisation_step(accelerator, wrapped, raw, raw, adamw, batch, clip, 2, step=step)


def test_in_the_first_steps_the_velocity_loss_trains_the_maps() -> None:
    """Its gradients against autograd on a forward pass of matrix products; none reaches the teacher, and the alignment loss is 0."""
    raw, batch = objective(), batch_of(4)
    state = {key: p.detach().clone().requires_grad_(True) for key, p in raw.alignment.state_dict().items()}
    model = {key: p.detach().clone() for key, p in raw.model.state_dict().items()}
    metrics = step_of(raw, SCAFFOLD, clip=1e9)
    x_t = torch.lerp(batch["latent"], batch["noise"], batch["t"][:, None, None, None])
    velocity = reference_forward(model, x_t, batch["t"], batch["label"], heads=2, patch=2, replaced={2: by_hand(state, batch)})
    loss = (velocity - batch["noise"] + batch["latent"]).square().mean()
    loss.backward()
    torch.testing.assert_close(metrics["velocity"], loss.detach(), rtol=1e-5, atol=0)
    for key, p in raw.alignment.named_parameters():
        torch.testing.assert_close(p.grad, state[key].grad, rtol=1e-3, atol=1e-6, msg=key)
    assert metrics["align"] == 0 and metrics["loss"] == metrics["velocity"]
    assert not any(p.requires_grad or p.grad is not None for p in teacher().teacher.model.parameters())


def test_the_phase_changes_after_its_last_step() -> None:
    """Then the maps have no gradient and stay, the velocity is that of a model without alignment, and keys and values alone are pulled."""
    plain = step_of(objective("none"), 1)
    for step in (1, SCAFFOLD, SCAFFOLD + 1, 1000):
        raw, first = objective(), step <= SCAFFOLD
        before = [p.detach().clone() for p in raw.alignment.parameters()]
        metrics = step_of(raw, step)
        assert (metrics["align"] == 0) == first and (metrics["velocity"] != plain["velocity"]) == first
        assert [p.grad is not None for p in raw.alignment.parameters()] == [first] * 4
        assert [torch.equal(a, b) for a, b in zip(before, raw.alignment.parameters(), strict=True)] == [not first] * 4


@pytest.mark.parametrize("step", [SCAFFOLD, SCAFFOLD + 1])
def test_weight_0_is_no_alignment_once_the_maps_are_gone(step: int) -> None:
    """Bit for bit, on the backbone."""
    raw, plain = objective(weight=0.0), objective("none")
    step_of(raw, step)
    step_of(plain, step)
    same = [torch.equal(p, q) for p, q in zip(raw.model.parameters(), plain.model.parameters(), strict=True)]
    assert all(same) == (step > SCAFFOLD)


def test_what_is_measured_is_the_loss_of_the_later_steps() -> None:
    raw = objective()
    batch = prepared(raw.alignment, batch_of(4)) | {"label_drop": torch.zeros(4, dtype=torch.bool)}
    measured, early, late = raw(batch), raw(batch, step=1), raw(batch, step=SCAFFOLD + 1)
    assert all(torch.equal(measured[key], late[key]) for key in late) and (measured["align"] > 0).all()
    assert torch.equal(early["align"], torch.zeros(4)) and not torch.allclose(early["velocity"], late["velocity"])


def test_beside_repa() -> None:
    """Whose loss counts in both phases; the phase is REPI's own."""
    parts = ({"name": "repa", "tap": 1, "weight": 0.25, "projector_width": 16}, {"name": "repi", "tap": 2, "scaffold": SCAFFOLD})
    raw = objective("multi", parts=parts)
    batch = prepared(raw.alignment, batch_of(4)) | {"label_drop": torch.zeros(4, dtype=torch.bool)}
    repa, repi = raw.alignment.parts
    for step in (1, SCAFFOLD + 1):
        given = raw.alignment.replaces(batch, step)
        x_t = torch.lerp(batch["latent"], batch["noise"], batch["t"][:, None, None, None])
        _, hidden = raw.model.forward_with_taps(x_t, batch["t"], batch["label"], taps=(1, 2, -2), replaced=given)
        expected = 0.25 * repa.loss(hidden, batch) + 2 * repi.loss(hidden, batch)
        torch.testing.assert_close(raw(batch, step=step)["align"], expected)
        assert bool(given) == (step == 1)
    with pytest.raises(ValueError, match=r"alignment.parts: more than one part replaces keys and values of a block"):
        made("multi", parts=(parts[1], parts[1] | {"tap": 1}))


def test_presets_and_their_accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Blocks 6, 8, 8, lambda 2, 20,000 steps; with it REPA of 0.25 at block 4. Parameters without a gradient are announced to DDP."""
    handlers: list[object] = []
    kept = Accelerator.__init__
    monkeypatch.setattr(Accelerator, "__init__", lambda self, *a, **more: (handlers.append(more["kwargs_handlers"]), kept(self, *a, **more))[1])
    for size, block in (("b2", 6), ("l2", 8), ("xl2", 8)):
        alone, both = resolve(presets.find(f"repi-{size}")), resolve(presets.find(f"repi-repa-{size}"))
        wanted = {"name": "repi", "tap": block, "weight": 2.0, "scaffold": 20_000}
        repa, repi = both.alignment["parts"]
        assert alone.alignment == wanted == repi and (repa["name"], repa["tap"], repa["weight"]) == ("repa", 4, 0.25)
        for config in (alone, both) if size == "b2" else ():
            make_accelerator(replace(config, precision="no"), tmp_path)  # type: ignore[arg-type]
            assert handlers.pop()[0].find_unused_parameters  # type: ignore[index]
    assert not presets.ROWS["repi"].runs_on_demo and resolve(presets.find("repi-demo")).alignment["scaffold"] == 140


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="alignment 'repi' reads a teacher's keys and values; the cache has no teacher"):
        made("repi", groups={"G4": GROUPS["G4"]})
    with pytest.raises(ValueError, match=r"teacher 'contract' has keys of width 7; the cache's features of it have 5"):
        made("repi", groups=GROUPS | {"teacher": (1, 5, 2, 2)})
    with pytest.raises(ValueError, match=r"alignment.scaffold"):
        resolve_alignment({"name": "repi", "scaffold": 0}, ModelConfig())
    with pytest.raises(ValueError, match=r"alignment.tap 13: this model has blocks 1 to 12"):
        resolve(presets.find("repi-b2"), {"alignment": {"tap": 13}})
    ruled: TrainConfig = resolve(presets.find("repi-b2"), {"stop_rule": {"name": "plateau"}})
    with pytest.raises(ValueError, match="--stop-rule plateau: alignment 'repi' replaces keys and values for 20000 steps, which no rule measures"):
        check_aligned(ruled, made("repi", scaffold=20_000))
