"""LayerSync, sREPA's gram, SPARE, disperse and SRA's cosines: against plain numpy float64; coupled losses; and each under every schedule."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import gsnr
from gsnr import plugins
from gsnr.probes.common.command import main as probe
from gsnr.train import losses, optimizer
from gsnr.train.command import main
from gsnr.train.config import ModelConfig, OptimConfig, resolve_alignment
from gsnr.train.contracts.problem import TrainSplit, batch_of, hidden, in_views, made, randomised, sit
from gsnr.train.objective import Objective
from gsnr.train.runs import checkpoint
from gsnr.train.schedules import make_schedule
from gsnr.train.step import optimisation_step
from tests.conftest import REPO, call
from tests.train.in_numpy import cosines, f64, mlp, numpy_cosine, softmax, tokens
from tests.train.run_files import tensors

NEWER = ("layersync", "gram", "spare", "disperse", "sra", "attention", "rare", "dupa", "pooled")


def test_layersync_in_numpy() -> None:
    alignment = made("layersync", tap=1, target_tap=3)
    assert alignment.taps == (1, 3) and not list(alignment.parameters())
    early, late = hidden(), hidden().flip(0) + 0.5
    got = f64(alignment.loss({1: early, 3: late}, batch_of()))
    np.testing.assert_allclose(got, [numpy_cosine(a, b) for a, b in zip(f64(early), f64(late), strict=True)], rtol=1e-5)


def test_layersync_takes_its_target_as_it_is() -> None:
    early, late = hidden().requires_grad_(True), (hidden() + 1).requires_grad_(True)
    made("layersync", tap=1, target_tap=3).loss({1: early, 3: late}, batch_of()).sum().backward()
    assert early.grad is not None and early.grad.abs().sum() > 0 and late.grad is None


@pytest.mark.parametrize(("tap", "target"), [(1, 2), (2, 3), (3, 2)])
def test_layersync_has_another_block_whatever_the_tap(tap: int, target: int) -> None:
    assert made("layersync", tap=tap).config.target_tap == target  # type: ignore[attr-defined]


def test_gram_in_numpy() -> None:
    alignment = randomised(made("gram", projector_width=16))
    batch, h = batch_of(), hidden()
    got = f64(alignment.loss({1: h}, batch))
    for b in range(3):
        z, y = mlp(alignment.state_dict(), "projector.mlp", f64(h[b]), 3), tokens(f64(batch["teacher"][b, 0]))
        assert got[b] == pytest.approx(((cosines(z) - cosines(y)) ** 2).mean(), rel=1e-4)


def test_gram_does_not_see_a_rotation_of_the_features() -> None:
    z, y = hidden(), hidden().flip(0)
    turned, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(losses.gram(z @ turned, y), losses.gram(z, y))
    torch.testing.assert_close(losses.gram(z @ turned, z), torch.zeros(3), atol=1e-10, rtol=0)


def test_spare_in_numpy() -> None:
    alignment = made("spare", temperature=0.3)
    batch, h = batch_of(), hidden()
    got = f64(alignment.loss({1: h}, batch))
    for b in range(3):
        x = f64(batch["latent"][b])
        y = np.stack([x[:, r : r + 2, c : c + 2].ravel() for r in (0, 2) for c in (0, 2)])
        p, q = softmax(cosines(y) / 0.3), softmax(cosines(f64(h[b])) / 0.3)
        assert got[b] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize("source", ["vlm", "teacher"])
def test_pooled_in_numpy(source: str) -> None:
    alignment = randomised(made("pooled", projector_width=16, source=source, tap=1))
    batch, h = batch_of(), hidden()
    got = f64(alignment.loss({1: h}, batch))
    for b in range(3):
        z = mlp(alignment.state_dict(), "projector.mlp", f64(h[b]), 3).mean(0, keepdims=True)
        assert got[b] == pytest.approx(numpy_cosine(z, f64(batch[source][b, 0]).mean((1, 2))[None]), rel=1e-4)


@pytest.mark.parametrize("away", [0.0, 100.0])
def test_disperse_in_numpy(away: float) -> None:
    """Far from the origin too, where squares are much larger than distances."""
    h = hidden(5) + away
    got = f64(made("disperse", temperature=0.7).loss({1: h}, batch_of(5)))
    z = f64(h).reshape(5, -1)
    pairs = [np.exp(-((a - b) ** 2).mean() / 0.7) for a in z for b in z]
    np.testing.assert_allclose(got, np.full(5, np.log(np.mean(pairs))), rtol=1e-4)


def test_the_cosines_of_sra() -> None:
    z, y = hidden(), hidden().flip(1) + 0.3
    assert f64(losses.token_axis_cosine(z, y)) == pytest.approx([numpy_cosine(a.T, b.T) for a, b in zip(f64(z), f64(y), strict=True)], rel=1e-5)
    for loss, expected in (("cos", losses.cosine), ("cos_token_axis", losses.token_axis_cosine), ("smooth_l1", losses.smooth_l1)):
        assert torch.equal(made("sra", loss=loss).discrepancy(z, y), expected(z, y))  # type: ignore[operator]


def test_similarities_are_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        cast = losses.similarities(hidden().bfloat16())
        dispersed = made("disperse").loss({1: hidden()}, batch_of())
    assert cast.dtype == torch.float32 and torch.equal(cast, losses.similarities(hidden().bfloat16()))
    assert torch.equal(dispersed, made("disperse").loss({1: hidden()}, batch_of()))


def objective_of(name: str, **options: object) -> Objective:
    model = sit()
    torch.manual_seed(5)
    alignment = made(name, **options)
    alignment.calibrate(TrainSplit())  # type: ignore[arg-type]
    return Objective(model, alignment)


def one_step(raw: Objective, schedule: dict, step: int = 3, views: int = 0) -> dict[str, torch.Tensor]:
    """The metrics of one step. views: of an image (0: as many as the alignment reads)."""
    batch = in_views(batch_of(4), views or raw.alignment.views) | {"label_drop": torch.zeros(4, dtype=torch.bool)}
    accelerator = Accelerator(cpu=True)
    objective, adamw = accelerator.prepare(raw, optimizer.make(raw, OptimConfig(lr=1e-2)))
    return optimisation_step(
        accelerator, objective, raw, Objective(sit(5), made("none")), adamw, batch, 1.0, 2, (), {"align": make_schedule(schedule)}, step
    )


@pytest.mark.parametrize("schedule", plugins.names("schedules"))
def test_one_step_of_each_under_every_schedule(schedule: str) -> None:
    """The loss is the velocity loss plus the weighted alignment loss; all weights of the model move, and stay finite."""
    options = {"name": schedule} | getattr(plugins.find("schedules", schedule), "EXAMPLE", {})
    for name in NEWER:
        raw = objective_of(name)
        before = [p.detach().clone() for p in raw.model.blocks.parameters()]
        metrics = one_step(raw, options)
        assert metrics["skipped"] == 0 and metrics["loss"] != metrics["velocity"], (name, metrics)
        moved = [not torch.equal(p, q) for p, q in zip(raw.model.blocks.parameters(), before, strict=True)]
        assert all(moved) and all(bool(torch.isfinite(p).all()) for p in raw.parameters()), name


@pytest.mark.parametrize("name", NEWER)
def test_weight_0_and_a_schedule_that_is_over_are_no_alignment(name: str) -> None:
    """Bit for bit, on the backbone."""
    plain = objective_of("none")
    one_step(plain, {"name": "constant"}, views=objective_of(name).alignment.views)
    for options, schedule in (({"weight": 0.0}, {"name": "constant"}), ({}, {"name": "stop", "at": 2})):
        raw = objective_of(name, **options)
        one_step(raw, schedule)
        assert all(torch.equal(p, q) for p, q in zip(raw.model.parameters(), plain.model.parameters(), strict=True)), options


@pytest.mark.parametrize("name", ["layersync", "gram", "disperse", "rare"])  # two taps, a head, coupled, fitted before it starts
def test_resumed_bit_for_bit(name: str, tmp_path: Path) -> None:
    """In the middle of a ramp."""
    ramp = ("--schedule", "ramp", "--schedule.start", 1, "--schedule.end", 5)
    narrow = ("--alignment.projector-width", 16) if name == "gram" else ()
    common = ("--preset", "smoke", "--trackers", "none", "--alignment", name, *narrow, *ramp, "--out")
    assert call(main, *common, tmp_path / "whole", "--steps", 4) == 0
    assert call(main, *common, tmp_path / "parts", "--steps", 2) == 0
    assert call(main, *common, tmp_path / "parts", "--steps", 4, "--resume") == 0
    one, two = (tensors(checkpoint.locate(tmp_path / run)) for run in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


def unit_loss() -> object:
    """The loss of docs/extending.md."""
    (code,) = re.findall(r"```python\n(def loss\(model, units\).*?)\n\n\nresult", (REPO / "docs" / "extending.md").read_text(), re.S)
    found: dict = {"torch": torch}
    exec(code, found)
    return found["loss"]


def test_batches_are_the_units_of_a_coupled_loss() -> None:
    """As docs/extending.md says: gsnr's mean and variance over units against one backward a unit."""
    raw, units = objective_of("disperse").eval(), 6
    batches = [batch_of(3, seed=i) | {"label_drop": torch.zeros(3, dtype=torch.bool)} for i in range(units)]
    stacked = {key: torch.stack([batch[key] for batch in batches]) for key in batches[0]}
    result = gsnr.measure(raw, unit_loss(), [stacked], engine="loop", interval=False)  # type: ignore[arg-type]
    rows = []
    for batch in batches:
        raw.zero_grad()
        raw(batch)["align"].mean().backward()
        rows.append(np.concatenate([f64(p.grad).ravel() for p in raw.parameters() if p.grad is not None]))
    g = np.stack(rows)
    noise = g.var(0, ddof=1).sum()
    assert result["all"].n == units
    assert result["all"].noise == pytest.approx(noise, rel=1e-3)
    assert result["all"].signal == pytest.approx((g.mean(0) ** 2).sum() - noise / units, rel=1e-3, abs=1e-6 * noise)


def test_a_coupled_target_is_refused_in_one_line(plain_run: Path, tmp_path: Path) -> None:
    said = r"is coupled: a sample's loss reads other samples, and has no gradient of its own; measure independent batches \(docs: Extending\)$"
    with pytest.raises(ValueError, match=rf"^--targets disperse: {said}"):
        call(probe, "--ckpt", plain_run, "--probe", "alignment", "--targets", "disperse", "--out", tmp_path / "never")
    with pytest.raises(ValueError, match=rf"^--gsnr-every: alignment 'disperse' {said}"):
        call(main, "--preset", "smoke", "--alignment", "disperse", "--gsnr-every", 1, "--gsnr-images", 8, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "never").exists()
    parts = ({"name": "disperse", "tap": 1}, {"name": "sra2", "tap": 2})
    assert made("multi", parts=parts).coupled and not made("multi").coupled


def test_the_newer_targets_are_probed_on_any_backbone(plain_run: Path, tmp_path: Path) -> None:
    from gsnr import table

    words = ("--ckpt", plain_run, "--probe", "alignment", "--bins", 1, "--n-images", 6, "--fit-samples", 64, "--fit-steps", 2, "--controls", "none")
    assert call(probe, *words, "--projector", "fit", "--targets", "layersync,gram,spare,rare", "--out", tmp_path) == 0
    cells = table.read(tmp_path / "alignment.parquet")
    assert set(zip(cells["target"], cells["projector"], strict=True)) == {
        *(("layersync", "none"), ("gram", "fit"), ("spare", "none"), ("rare", "fit"))
    }
    assert (cells["signal"] + cells["noise"] > 0).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "layersync", "target_tap": 4}, "alignment.target_tap 4: must be a block of 1 to 3 other than the tap"),
        ({"name": "layersync", "tap": 2, "target_tap": 2}, "alignment.target_tap 2: must be a block of 1 to 3 other than the tap, 2"),
        ({"name": "spare", "temperature": 0}, "alignment.temperature 0.0: must be at least 0.001"),
        ({"name": "sra", "loss": "cosine"}, "alignment.loss 'cosine' does not exist; choose from smooth_l1, cos, cos_token_axis"),
    ],
)
def test_bad_options(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve_alignment(options, ModelConfig(depth=3))
