"""How projectors are fitted: converged or said not to be, the same whatever the order of the data, and right where the answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gsnr.probes.common import descent, fit
from gsnr.probes.common.candidates import candidates
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache
from gsnr.probes.common.streaming import streamed
from gsnr.train import losses
from tests.benchmarks import fits
from tests.probes.subjects import subject_of

OPTIONS = TargetOptions(bins=1, n_images=8, fit_samples=512, projector=("fit",))


def test_a_closed_form_fit_beats_descent(smoke_run: Path) -> None:
    """On the held-out part of the train split; and of another image only what all share is learnt: the mean, and what place and time say."""
    subject = subject_of(smoke_run)
    options = dataclasses.replace(OPTIONS, targets=("uniform_deep",), controls=("shuffled",), fit_samples=2048)
    made = candidates(subject, options)
    mean = fit.means(subject, 0, made)
    ridge = fit.fit(subject, options, made, mean)
    alone = candidates(subject, dataclasses.replace(options, controls=("none",)))
    descended = fit.fit(subject, dataclasses.replace(options, fit="descent", fit_steps=60), alone, mean)["uniform_deep"]
    true, shuffled = ridge["uniform_deep"], ridge["uniform_deep [shuffled]"]
    assert (true.how, descended.how) == ("ridge", "descent") and true.loss < descended.loss < descended.constant_loss
    assert true.loss < 0.7 * shuffled.loss and shuffled.loss < 1.01 * shuffled.constant_loss
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
    monkeypatch.setattr(descent, "EVERY", 2)
    monkeypatch.setattr(descent, "PATIENCE", 1)
    monkeypatch.setattr(descent, "GAIN", 0.5)  # a plateau is where half of the loss is no longer gained
    made = candidates(subject, options)
    stopped = fit.fit(subject, dataclasses.replace(options, fit_steps=60), made, mean)["repa"]
    assert stopped.converged and stopped.steps < 60 and stopped.how == "descent"
    assert stopped.loss <= stopped.constant_loss, "it begins at the mean target, and keeps the best weights"


def test_an_interrupted_descent_goes_on_to_the_same_bits(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(smoke_run)
    options = dataclasses.replace(OPTIONS, targets=("repa", "sra2"), controls=("none",), fit_steps=40)
    for name, value in {"EVERY": 2, "PATIENCE": 1, "GAIN": 0.05, "KEPT_EVERY": 6}.items():
        monkeypatch.setattr(descent, name, value)
    whole, again = candidates(subject, options), candidates(subject, options)
    mean = fit.means(subject, 0, whole)
    expected, keeper = fit.fit(subject, options, whole, mean), ResumeCache(tmp_path)
    last = max(fitted.steps for fitted in expected.values())
    assert last > 6, "it is interrupted on its way"
    taken = descent.Descent.step

    def breaking(run: descent.Descent, step: descent.Step) -> None:
        if run.steps == 7:
            raise KeyboardInterrupt
        taken(run, step)

    monkeypatch.setattr(descent.Descent, "step", breaking)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(subject, options, again, mean, keeper)
    counted: list[int] = []
    monkeypatch.setattr(descent.Descent, "step", lambda run, step: (counted.append(run.steps), taken(run, step)))
    fresh = candidates(subject, options)
    assert str(fit.fit(subject, options, fresh, mean, keeper)) == str(expected) and min(counted) == 6, "the other had converged"
    for a, b in zip(whole, fresh, strict=True):
        assert a.head is not None and b.head is not None
        assert all(torch.equal(x, b.head.state_dict()[name]) for name, x in a.head.state_dict().items())


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


@pytest.mark.parametrize("case", fits.CASES)
def test_intervals_hold_zero_where_nothing_is_left_to_learn(case: str) -> None:
    """24 worlds; `python -m tests.benchmarks.fits` does it on 400."""
    assert fits.covered(case, 24) >= 20 / 24


def test_a_known_linear_target_is_found_and_a_projector_that_was_not_fitted_is_seen() -> None:
    world = fits.World(0)
    candidate = fits.fitted(world, "none", losses.smooth_l1)
    x = world.batch(512)["x"]
    assert candidate.aligned is not None
    with torch.no_grad():
        off, truth = candidate.aligned.projector(world.backbone(x)) - world.truth(x), world.truth(x)
    assert off.square().sum() < 0.05 * (truth - truth.mean((0, 1))).square().sum()
    fresh = dataclasses.replace(candidate, alignment=fits.Given(fits.Projector(fits.D, fits.C, fits.GRID), losses.smooth_l1))
    assert not fits.measured(world, fresh).below_detection


def test_directions_are_told_from_values() -> None:
    """Nor is a weighted mean of cosines their mean: its best projector is another."""
    y = torch.randn(2, 5, 4)
    several = lambda x, target: losses.group_cosine(x, target, (2, 2))
    negative = lambda x, target: 3 - 2 * losses.cosine(x, target)
    others = (losses.l1, losses.smooth_l1, losses.residual_cosine, several)
    for loss, expected in ((losses.cosine, True), (negative, True), *((loss, False) for loss in others)):
        assert fit.directional(SimpleNamespace(aligned=SimpleNamespace(discrepancy=loss)), y) is expected  # type: ignore[arg-type]


def test_sorted_and_rotating_labels_change_no_verdict_of_the_digits(smoke_run: Path) -> None:
    """The images that judge a fit are of all classes, whatever the order of the train split."""
    subject = subject_of(smoke_run)
    split = subject.splits["train"]
    labels = split.take(fit.images_of(subject, fit.CHOOSES), ("label",))["label"]
    both = np.concatenate([fit.images_of(subject, part) for part in (fit.SOLVES, fit.CHOOSES)])
    assert sorted(both) == list(range(split.size)) and len(np.unique(labels)) >= 8


def test_batches_of_other_processes_are_those_made_in_place(smoke_run: Path) -> None:
    """As a GPU gets them: the same bits, in order, from any first step on."""
    split = subject_of(smoke_run).splits["train"]
    partner_N = np.roll(np.arange(split.size), 1)
    samples = fit._Samples(split=split, images=np.arange(split.size), partners={"shuffled": partner_N}, groups=("G4",), seed=3, part=fit.CHOOSES)
    one, two = (list(streamed(samples, 1, 4, "cpu", workers)) for workers in (0, 2))
    assert len(one) == len(two) == 3 and one[0].keys() == two[0].keys() == {fit.OWN, "shuffled"}
    for a, b in zip(one, two, strict=True):
        for name, batch in a.items():
            assert all(torch.equal(x, b[name][key]) for key, x in batch.items())


def test_another_target_changes_no_bit_of_a_fit(smoke_run: Path) -> None:
    """Nor does their order."""
    subject = subject_of(smoke_run)
    options = dataclasses.replace(OPTIONS, targets=("uniform_mid", "uniform_deep"), controls=("shuffled",))
    together = candidates(subject, options)
    alone = [c for c in candidates(subject, options) if c.name == "uniform_deep [shuffled]"]
    reverse = list(reversed(candidates(subject, options)))
    found = []
    for made in (together, alone, reverse):
        mean = fit.means(subject, 0, together)
        fitted = fit.fit(subject, options, made, mean)["uniform_deep [shuffled]"]
        head = next(c.head for c in made if c.name == "uniform_deep [shuffled]")
        assert head is not None
        found.append((fitted, [x.clone() for x in head.state_dict().values()]))
    for fitted, weights in found[1:]:
        assert fitted == found[0][0] and all(torch.equal(x, y) for x, y in zip(weights, found[0][1], strict=True))
