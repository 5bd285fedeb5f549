"""Several views of an image, DUPA, and SPARE across images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gsnr.probes.common.command import main as probe
from gsnr.train.command import main
from gsnr.train.config import resolve, resolve_alignment
from gsnr.train.contracts.problem import MODEL, batch_of, hidden, in_views, made, randomised, sit
from gsnr.train.data import permutation, rng
from gsnr.train.data.batches import StepBatches, flattened
from gsnr.train.demo.cache import demo_cache
from gsnr.train.interpolant import interpolate
from gsnr.train.objective import Objective
from gsnr.train.opening import open_prepared
from gsnr.train.runs import checkpoint
from gsnr.train.schedules import make_schedule
from gsnr.train.step import _total
from tests.conftest import call
from tests.train.in_numpy import cosines, f64, mlp, numpy_cosine, softmax
from tests.train.run_files import lines, tensors


@pytest.mark.parametrize("views", [2, 3])
def test_dupa_in_numpy(views: int) -> None:
    alignment = randomised(made("dupa", projector_width=16, views=views))
    h = torch.randn(3, views, 4, 8)
    got = f64(alignment.loss({1: h}, batch_of()))
    for b in range(3):
        z = [mlp(alignment.state_dict(), "projector.mlp", f64(h[b, k]), 3) for k in range(views)]
        pairs = [numpy_cosine(z[i], z[j]) for i in range(views) for j in range(i)]
        assert got[b] == pytest.approx(np.mean(pairs), rel=1e-4)


def test_gradients_go_through_both_views() -> None:
    h = torch.randn(3, 2, 4, 8, requires_grad=True)
    randomised(made("dupa", projector_width=16)).loss({1: h}, batch_of()).sum().backward()
    assert h.grad is not None and bool((h.grad.abs().sum((0, 2, 3)) > 0).all())


def split():
    return open_prepared(demo_cache(256, 256, "adaptive"), ())[1]["train"]


def batches(**changes: int) -> StepBatches:
    return StepBatches(split=split(), groups=(), batch=12, seed=4, label_dropout=0.5, **changes)  # type: ignore[arg-type]


def test_views_share_the_image_and_differ_in_time_and_noise() -> None:
    """Sample j is image j // 2 with the random numbers of j; ranks and micro-batches take whole images."""
    batch = batches(views=2)[1]
    assert batch["t"].shape == (6, 2) and batch["noise"].shape == (6, 2, 4, 8, 8) and batch["latent"].shape == (6, 4, 8, 8)
    drawn = rng.draw(4, "train", np.arange(12, 24), (4, 8, 8))
    np.testing.assert_array_equal(batch["noise"].flatten(0, 1).numpy(), drawn.noise)
    np.testing.assert_array_equal(batch["t"].flatten().numpy(), drawn.u.astype(np.float32))
    index = permutation.image_of(np.arange(6, 12), 256, 4)
    np.testing.assert_array_equal(batch["label"].numpy(), split().take(index, ("label",))["label"])
    for rank in (0, 1):
        part = batches(views=2, rank=rank, world=2)[1]
        assert all(torch.equal(x, batch[key][3 * rank : 3 * rank + 3]) for key, x in part.items())
    rows = flattened(batch)
    assert torch.equal(rows["latent"][2], rows["latent"][3]) and torch.equal(rows["latent"][2], batch["latent"][1])
    assert torch.equal(rows["noise"][3], batch["noise"][1, 1]) and torch.equal(rows["t"][3], batch["t"][1, 1])
    plain = batches()[1]
    assert flattened(plain) is plain


@pytest.mark.parametrize(("changes", "at_once"), [({"views": 5}, 12), ({"views": 2, "world": 2, "accumulate": 2}, 3)])
def test_views_that_do_not_divide_the_batch_are_refused(changes: dict[str, int], at_once: int) -> None:
    said = rf"--batch 12: {at_once} at once are not a multiple of the {changes['views']} views of an image \(--alignment.views\)"
    with pytest.raises(ValueError, match=said):
        batches(**changes)


def test_the_objective_gives_each_view_to_the_model_as_a_row() -> None:
    objective = Objective(sit(), randomised(made("dupa", projector_width=16)))
    batch = in_views(batch_of(4), 2) | {"label_drop": torch.tensor([False, True, False, False])}
    found = objective(batch)
    assert found["velocity"].shape == (4, 2) and found["align"].shape == (4,)
    for k in range(2):
        x_t = interpolate(batch["latent"], batch["noise"][:, k], batch["t"][:, k])
        v = objective.model(x_t, batch["t"][:, k], batch["label"], batch["label_drop"])
        expected = (v - (batch["noise"][:, k] - batch["latent"])).square().mean((1, 2, 3))
        torch.testing.assert_close(found["velocity"][:, k], expected)


def test_schedules_over_t_weigh_each_view() -> None:
    """The velocity loss by the view's own t, the loss of the image by the mean of its views' weights."""
    t, velocity, align = torch.tensor([[0.1, 0.9], [0.2, 0.3]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
    window = make_schedule({"name": "t_window", "xi": 0.5})
    got = _total({"velocity": velocity, "align": align}, t, {"align": 2.0}, {"velocity": window, "align": window}, 1)
    assert float(got) == pytest.approx((1 + 3 + 4) / 4 + 2 * (0.5 * 10 + 20) / 2)


NARROW = ("--model.hidden-size", 32, "--model.num-heads", 2, "--alignment.projector-width", 16)
SHORT = ("--data.demo-train", 256, "--data.demo-heldout", 256, "--sample-every", 0, "--trackers", "none", "--log-every", 1)
DUPA = ("--preset", "dupa-demo", *NARROW, *SHORT)


def test_a_run_resumes_and_its_gsnr_is_that_of_images(tmp_path: Path) -> None:
    measured = ("--gsnr-every", 4, "--gsnr-images", 6)
    assert call(main, *DUPA, *measured, "--out", tmp_path / "whole", "--steps", 4) == 0
    assert call(main, *DUPA, "--out", tmp_path / "parts", "--steps", 2) == 0
    assert call(main, *DUPA, "--out", tmp_path / "parts", "--steps", 4, "--resume") == 0
    one, two = (tensors(checkpoint.locate(tmp_path / run)) for run in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())
    assert {(line["loss"], line["n"]) for line in lines(tmp_path / "whole" / "gsnr.jsonl")} == {("velocity", 6), ("align", 6)}
    said = r"^--targets dupa: reads several \(t, noise\) views of an image at once, and the probes have single ones"
    with pytest.raises(ValueError, match=said):
        call(probe, "--ckpt", tmp_path / "whole", "--probe", "alignment", "--targets", "dupa", "--out", tmp_path / "never")
    with pytest.raises(ValueError, match="--batch 15: 15 at once are not a multiple of the 2 views"):
        call(main, *DUPA, "--out", tmp_path / "odd", "--batch", 15)
    assert not (tmp_path / "odd").exists()


def test_views_go_with_no_other_alignment() -> None:
    with pytest.raises(ValueError, match=r"alignment.parts: 'dupa' reads 2 views of an image, and goes with no other"):
        resolve_alignment({"name": "multi", "parts": ({"name": "dupa"}, {"name": "sra2"})}, MODEL)


def test_spare_across_images_in_numpy() -> None:
    alignment = made("spare", temperature=0.3, across=0.7)
    batch, h = batch_of(), hidden()
    got, within = (f64(a.loss({1: h}, batch)) for a in (alignment, made("spare", temperature=0.3)))
    x = f64(batch["latent"])
    y = np.stack([[x[b, :, r : r + 2, c : c + 2].ravel() for r in (0, 2) for c in (0, 2)] for b in range(3)])
    across = np.zeros(3)
    for position in range(4):
        p, q = softmax(cosines(y[:, position]) / 0.3), softmax(cosines(f64(h)[:, position]) / 0.3)
        across += (p * np.log(p / q)).sum(1) / 4
    np.testing.assert_allclose(got, within + 0.7 * across, rtol=1e-4)
    assert alignment.coupled and not made("spare").coupled


def test_spare_across_images_is_refused_where_samples_have_to_be_independent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--gsnr-every: alignment 'spare' is coupled"):
        call(
            main, "--preset", "smoke", "--alignment", "spare", "--alignment.across", 1, "--gsnr-every", 1, "--gsnr-images", 8, "--out", tmp_path / "r"
        )
    assert resolve({"alignment": {"name": "spare"}}).alignment["across"] == 0
