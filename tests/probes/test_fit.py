"""How projectors are fitted: converged or said not to be, the same whatever the order of the data, and right where the answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gsnr
from gsnr.probes.common import fit
from gsnr.probes.common.candidates import Candidate, candidates
from gsnr.probes.common.options import TargetOptions
from gsnr.train import losses
from gsnr.train.projectors.conv3x3 import Projector as Conv3x3
from gsnr.train.projectors.mlp3 import Projector as MLP3
from tests.probes.subjects import subject_of

OPTIONS = TargetOptions(bins=1, n_images=8, fit_samples=512, projector=("fit",))


def test_a_closed_form_fit_beats_any_descent_on_its_own_data(smoke_run: Path) -> None:
    """The ridge solution of the demo's default targets: its loss on the held-out part is no worse than after thousands of steps of descent, and
    other weights near it are not better on what it was solved from."""
    subject = subject_of(smoke_run)
    options = dataclasses.replace(OPTIONS, targets=("uniform_deep",), controls=("shuffled",), fit_samples=4096)
    made, descended = candidates(subject, options), candidates(subject, options)
    mean = fit.means(subject, 0, made)
    ridge = fit.fit(subject, options, made, mean)
    descent = fit.fit(subject, dataclasses.replace(options, fit="descent", fit_steps=600), descended, mean)
    assert {f.how for f in ridge.values()} == {"ridge"} and {f.how for f in descent.values()} == {"descent"}
    for name, fitted in ridge.items():
        assert fitted.loss < descent[name].loss + 0.01 * fitted.constant_loss, name
    true, shuffled = ridge["uniform_deep"], ridge["uniform_deep [shuffled]"]
    assert true.loss < 0.98 * true.constant_loss and true.penalty < shuffled.penalty
    assert shuffled.loss == pytest.approx(shuffled.constant_loss, rel=0.01), "nothing is to be learnt of another image"
    frozen = subject_of(smoke_run).checkpoint.model.state_dict()
    assert all(torch.equal(v, frozen[k]) for k, v in subject.checkpoint.model.state_dict().items())


def test_two_fits_are_the_same_fit_and_routers_stay(smoke_run: Path) -> None:
    subject = subject_of(smoke_run)
    one, two = candidates(subject, OPTIONS), candidates(subject, OPTIONS)
    before = [{k: v.clone() for k, v in c.alignment.state_dict().items()} for c in one]
    mean = fit.means(subject, 0, one)
    assert str(fit.fit(subject, OPTIONS, one, mean)) == str(fit.fit(subject, OPTIONS, two, mean))
    for a, b, was in zip(one, two, before, strict=True):
        for name, value in a.alignment.state_dict().items():
            assert torch.equal(value, b.alignment.state_dict()[name])
            assert torch.equal(value, was[name]) != name.startswith("projector."), (a.name, name)


def test_descent_stops_at_a_plateau_or_says_that_it_did_not(smoke_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(smoke_run)
    options = dataclasses.replace(OPTIONS, targets=("repa",), controls=("none",), fit_steps=2)
    made = candidates(subject, options)
    mean = fit.means(subject, 0, made)
    assert fit.fit(subject, options, made, mean)["repa"].converged is False
    monkeypatch.setattr(fit, "EVERY", 2)
    monkeypatch.setattr(fit, "PATIENCE", 1)
    monkeypatch.setattr(fit, "GAIN", 0.5)  # a plateau is where half of the loss is no longer gained
    made = candidates(subject, options)
    stopped = fit.fit(subject, dataclasses.replace(options, fit_steps=60), made, mean)["repa"]
    assert stopped.converged and stopped.steps < 60 and stopped.how == "descent"
    assert stopped.loss <= stopped.constant_loss, "it begins at the mean target, and keeps the best weights"


def test_which_projectors_are_affine() -> None:
    for name in ("linear", "conv1x1", "conv3x3"):
        head = _projector(name)
        layer = fit.affine_layer(head)
        assert layer is not None
        h = torch.randn(3, 16, 8)
        plain = F.linear(fit.inputs_of(layer, h), layer.weight.flatten(1), layer.bias)
        torch.testing.assert_close(head(h).flatten(0, 1), plain)
    assert all(fit.affine_layer(_projector(name)) is None for name in ("mlp3", "conv2", "repa", "sra"))


def _projector(name: str) -> nn.Module:
    from gsnr import plugins

    return plugins.find("projectors", name).Projector(8, 5, 4)


class _Given(nn.Module):
    """A target that is handed over, with a loss of choice: what `Candidate` asks of an alignment."""

    def __init__(self, projector: nn.Module, loss: Any) -> None:
        super().__init__()
        self.projector, self.discrepancy, self.needs = projector, loss, ()

    def target(self, batch: dict[str, Tensor], h_BTD: Tensor) -> Tensor:
        return batch["target"]


class _World:
    """Hidden states h = tokens of "images" through a fixed nonlinear backbone, and targets with a known linear part. Everything is a function of the
    seed. D = 6, C = 4, 16 tokens."""

    def __init__(self, seed: int, share: float) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.backbone = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))
        self.linear_DC = torch.randn(6, 4, generator=self.rng) * share

    def batch(self, n: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        made = []
        for _ in range(2):
            x = torch.randn(n, 1, 6, generator=self.rng) + 0.5 * torch.randn(n, 16, 6, generator=self.rng)
            noise = torch.randn(n, 1, 4, generator=self.rng) + 0.5 * torch.randn(n, 16, 4, generator=self.rng)
            with torch.no_grad():
                made.append({"x": x, "target": self.backbone(x) @ self.linear_DC + noise + torch.tensor([2.0, 0.0, -1.0, 0.5])})
        return made[0], made[1]


def _fitted(world: _World, control: str, loss: Any, monkeypatch: pytest.MonkeyPatch) -> Candidate:
    """A 3x3 projector solved from 768 images and chosen by 128, by the probe's own code."""
    batches = {0: [world.batch(64) for _ in range(12)], 1: [world.batch(64) for _ in range(2)]}

    def steps(subject: Any, seed: int, made: Any, count: int, part: int = 0) -> Iterator[fit.Step]:
        for own, other in batches[part]:
            with torch.no_grad():
                yield own, {"shuffled": other}, world.backbone(own["x"])

    monkeypatch.setattr(fit, "fit_steps", steps)
    monkeypatch.setattr(Candidate, "aligned", property(lambda self: self.alignment))
    torch.manual_seed(0)
    candidate = Candidate(target="given", control=control, projector="fit", alignment=_Given(Conv3x3(6, 4, 4), loss))  # type: ignore[arg-type]
    fit.fit(SimpleNamespace(), OPTIONS, [candidate], fit.means(SimpleNamespace(), 0, [dataclasses.replace(candidate, control="none")]))  # type: ignore[arg-type]
    return candidate


def _gsnr(world: _World, candidate: Candidate, n: int) -> gsnr.Estimate:
    """Of the backbone's gradient on new images."""
    own, other = world.batch(n)
    assert candidate.aligned is not None

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return candidate.aligned.discrepancy(candidate.aligned.projector(model(batch["x"])), batch["target"])  # type: ignore[union-attr]

    target = (other if candidate.control == "shuffled" else own)["target"]
    return gsnr.measure(world.backbone, loss, [{"x": own["x"], "target": target}])["all"]


@pytest.mark.parametrize("loss", [losses.cosine, losses.smooth_l1])
def test_shuffled_targets_cover_zero_and_what_is_not_learnt_does_not(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 worlds of 256 images. The nominal share is 95 %; of 40, between 34 and 40 lie within four standard errors."""
    covered, found = 0, []
    for seed in range(40):
        torch.manual_seed(seed)
        world = _World(seed, share=1.0)
        low, high = _gsnr(world, _fitted(world, "shuffled", loss, monkeypatch), 256).ci()
        covered += low <= 0 <= high
        if seed < 5:
            unlearnt = Candidate(target="given", control="none", projector="fresh", alignment=_Given(MLP3(6, 4, 4), loss))  # type: ignore[arg-type]
            found.append(_gsnr(world, unlearnt, 256).below_detection)
    assert 34 <= covered <= 40
    assert not any(found), "a projector that was not fitted is seen at once"


def test_a_known_linear_target_leaves_the_gsnr_of_its_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """y = A h + noise under smooth L1: with the true A, the residual says nothing of h, and E g = 0. The fitted projector's interval holds that."""
    covered = 0
    for seed in range(40):
        torch.manual_seed(seed)
        world = _World(seed, share=1.0)
        candidate = _fitted(world, "none", losses.smooth_l1, monkeypatch)
        assert candidate.aligned is not None
        weight = candidate.aligned.projector.conv[0].weight.detach()  # type: ignore[union-attr, index]
        assert (weight[:, :, 1, 1].T - world.linear_DC).norm() < 0.4 * world.linear_DC.norm()
        low, high = _gsnr(world, candidate, 256).ci()
        covered += low <= 0 <= high
    assert 34 <= covered <= 40


def test_directions_are_told_from_values() -> None:
    y = torch.randn(2, 5, 4)
    for loss, expected in ((losses.cosine, True), (losses.l1, False), (losses.smooth_l1, False)):
        assert fit.directional(SimpleNamespace(aligned=SimpleNamespace(discrepancy=loss)), y) is expected  # type: ignore[arg-type]


def test_sorted_and_rotating_labels_change_no_verdict_of_the_digits(smoke_run: Path) -> None:
    """The images that judge a fit are of all classes, whatever the order of the train split."""
    subject = subject_of(smoke_run)
    split = subject.splits["train"]
    labels = split.take(fit.images_of(subject, fit.CHOOSES), ("label",))["label"]
    both = np.concatenate([fit.images_of(subject, part) for part in (fit.SOLVES, fit.CHOOSES)])
    assert sorted(both) == list(range(split.size)) and len(np.unique(labels)) >= 8
