"""What a measurement may be asked for, several checkpoints at once, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gsnr
from gsnr import commandline, table
from gsnr.options import build
from gsnr.probes.common import aligned, bins, fit
from gsnr.probes.common.candidates import candidates, with_constants
from gsnr.probes.common.command import main
from gsnr.probes.common.measuring import Measurement
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache
from gsnr.train.data import permutation
from gsnr.train.data.heldout import order
from gsnr.train.data.rng import draw
from tests.conftest import call
from tests.gsnr import naive
from tests.gsnr.problems import naive_gradients
from tests.listing import choose_from
from tests.probes.subjects import subject_of

WORDS = ("--probe", "alignment", "--bins", 3, "--n-images", 8, "--fit-samples", 128)
TARGETS = (  # ours
    "ahpa, gram, heuristic, irepa, layersync, pooled_teacher, rare, rare_G4, repa, spare, sra, sra2, "
    "uniform_G1, uniform_G2, uniform_mid, uniform_deep, uniform_both, uniform_G1-G4"
)
KEYS = ["run", "target", "control", "projector", "group", "bin"]


def cells_of(out: Path) -> pd.DataFrame:
    return table.read(out / "alignment.parquet").drop(columns="created")


def test_interrupted_and_resumed_equals_uninterrupted(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the last bin: two bins and the fits stay, and neither is done again."""
    words = ("--ckpt", smoke_run, *WORDS, "--targets", "own", "--controls", "shuffled,constant")
    assert call(main, *words, "--out", tmp_path / "whole") == 0
    real, calls = aligned.measure, []

    def stops(*arguments: object) -> dict[str, gsnr.ComparisonResult]:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(aligned, "measure", stops)
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        call(main, *words, "--out", out)
    kept = out / ".alignment.resume"
    assert sorted(p.name for p in (kept / "ckpt0").iterdir()) == ["bin0.json", "bin1.json", "projectors.safetensors"]
    assert not (out / "alignment.parquet").exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="an interrupted measurement, 3 pieces of it; --resume continues it, --overwrite drops it"):
        call(main, *words, "--out", out)
    with pytest.raises(ValueError, match=r"with other settings .n_images was 8, now 9.; --overwrite drops it"):
        call(main, *words, "--n-images", 9, "--out", out, "--resume")
    again = []
    monkeypatch.setattr(aligned, "measure", lambda *a: again.append(1) or real(*a))
    monkeypatch.setattr(aligned, "fit", lambda *a: pytest.fail("fitted again"))
    assert call(main, *words, "--out", out, "--resume") == 0
    assert len(again) == 1
    pd.testing.assert_frame_equal(cells_of(tmp_path / "whole"), cells_of(out), check_exact=True)
    assert not kept.exists()
    one, two = (table.provenance(o / "alignment.parquet")["checkpoints"] for o in (tmp_path / "whole", out))
    assert one == two


def test_a_damaged_piece_is_named_and_nothing_is_left_of_a_measurement_that_did_not_begin(smoke_run: Path, tmp_path: Path) -> None:
    parts = ResumeCache(tmp_path / "parts")
    parts.begin({"a": (1, 2)}, resume=False)
    blank: dict[str, Any] = {name: {"string": "", "int64": 0, "float64": float("nan")}[kind] for name, kind in table.METRIC_COLUMNS.items()}
    one, two = parts.rows("x", lambda: {"metrics": [blank, blank | {"value": 0.1 + 0.2}]})["metrics"]
    assert np.isnan(one["value"]) and two["value"] == 0.1 + 0.2
    assert torch.equal(parts.tensors("y", lambda: {"w": torch.ones(2)})["w"], torch.ones(2))
    parts.begin({"a": [1, 2]}, resume=True)
    assert parts.finished == 2
    (parts.folder / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x.json: damaged"):
        parts.rows("x", dict)
    (parts.folder / "y.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"y.safetensors: damaged"):
        parts.tensors("y", dict)
    for words, message in (
        (("--targets", "own,magic"), "--targets magic: it does not exist, or the data lack its features; " + choose_from(f"all, own, {TARGETS}")),
        (("--controls", "magic"), "--controls 'magic' does not exist; choose from shuffled, shuffled_class, constant"),
        (("--controls", "shuffled,constant", "--projector", "fit"), "--controls constant: a projector that is fitted to a constant learns it"),
        (("--controls", "shuffled,none"), "--controls shuffled,none: none stands alone"),
        (("--projector", "magic"), "--projector 'magic' does not exist; choose from fit, ckpt, fresh"),
        (("--projector", "ckpt", "--targets", "sra2"), "has none for the targets sra2; choose fit"),
        (("--spacing", "magic"), "--spacing 'magic' does not exist; choose from t, logsnr"),
    ):
        with pytest.raises(ValueError, match=message):
            call(main, "--ckpt", smoke_run, *WORDS, *words, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_tables_that_are_links_are_refused_before_anything_is_measured(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measurement, "run", lambda *words, **options: pytest.fail("it was measured"))
    (tmp_path / "alignment.samples.parquet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"alignment.samples.parquet: a link, not a file; it is left as it is"):
        call(main, "--ckpt", smoke_run, *WORDS, "--out", tmp_path)


def test_every_target_of_the_demo_s_data(smoke_run: Path, tmp_path: Path) -> None:
    """G1 to G4, their mixtures, the clean latent, an image teacher, the model itself: on the same images, times and noise."""
    words = ("--ckpt", smoke_run, "--probe", "alignment", "--bins", 1, "--n-images", 8, "--fit-samples", 128, "--fit-steps", 3, "--controls", "none")
    assert call(main, *words, "--targets", "all", "--projector", "fit,fresh", "--out", tmp_path) == 0
    cells = cells_of(tmp_path)
    ours = cells[cells["target"].isin(TARGETS.split(", "))]
    assert set(ours["target"]) == set(TARGETS.split(", "))
    bare = ours["target"].isin(["layersync", "spare"])  # which have no projector
    assert set(ours["control"]) == {"none"} and set(ours.loc[bare, "projector"]) == {"none"}
    assert set(ours.loc[~bare, "projector"]) == {"fit", "fresh"}
    assert (cells.loc[cells["group"] == "all", "noise"] > 0).all()
    samples = table.read(tmp_path / "alignment.samples.parquet")
    assert samples.groupby("image_id")["t"].nunique().max() == 1


def test_bins_in_logsnr(smoke_run: Path, tmp_path: Path) -> None:
    words = ("--ckpt", smoke_run, *WORDS, "--controls", "none", "--projector", "fit", "--targets", "uniform_mid")
    assert call(main, *words, "--spacing", "logsnr", "--out", tmp_path) == 0
    cells = cells_of(tmp_path)
    widths = cells["logsnr_high"] - cells["logsnr_low"]
    np.testing.assert_allclose(widths, 2 * bins.LOGSNR_LIMIT / 3, rtol=1e-9)
    assert cells["t_low"].min() == pytest.approx(0.01, abs=1e-4) and cells["t_high"].max() == pytest.approx(0.99, abs=1e-4)
    samples = table.read(tmp_path / "alignment.samples.parquet").merge(cells[[*KEYS, "t_low", "t_high"]], on=KEYS)
    assert ((samples["t_low"] <= samples["t"]) & (samples["t"] <= samples["t_high"])).all()


def test_a_constant_target_is_the_mean_target_of_train_images(smoke_run: Path) -> None:
    """Computed here from the cache: of unit targets, which have the direction of the best constant under a cosine loss."""
    subject = subject_of(smoke_run)
    options = TargetOptions(bins=1, n_images=8, projector=("fresh",), targets=("uniform_deep",))
    made = candidates(subject, options)
    mean = fit.means(subject, 0, made)
    vector = {c.control: c for c in with_constants(made, mean)}["constant"].constant_C
    images = order(subject.splits["train"].size)[subject.splits["train"].size // 8 :]
    index = images[permutation.image_of(np.arange(fit.MEAN * fit.FIT_BATCH), len(images), 0)]
    deep = subject.splits["train"].take(index, ("G4",))["G4"].astype(np.float64).mean(1)
    unit = deep / np.linalg.norm(deep, axis=1, keepdims=True)
    assert vector is not None
    np.testing.assert_allclose(vector.numpy(), unit.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def whole_gradients(run: Path) -> np.ndarray:
    """(8, P): of uniform_mid's loss in bin 1, for the backbone up to the tap; one float64 .backward() a sample, from the files of the run.
    The projector is fitted by `fit`, which has tests of its own."""
    subject = subject_of(run)
    options = TargetOptions(bins=3, n_images=8, seed=0, fit_samples=128, controls=(), projector=("fit",), targets=("uniform_mid",))
    (candidate,) = candidates(subject, options)
    fit.fit(subject, options, [candidate], fit.means(subject, 0, [candidate]))
    images = np.sort(order(256)[:8])  # as `estimate_again` has them
    rows = subject.splits["heldout"].take(images, ("mean", "std", "label", "G3"))
    drawn = draw(0, "heldout", images, subject.header.latent_shape)
    t = 1 / 3 + drawn.u / 3
    x0 = (rows["mean"] + rows["std"] * drawn.posterior.astype(np.float64)) * subject.header.scale
    x_t = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * drawn.noise
    target = rows["G3"].astype(np.float64).mean(1).reshape(8, rows["G3"].shape[2], -1).transpose(0, 2, 1)
    data = {name: torch.from_numpy(x) for name, x in {"x": x_t, "t": t, "y": rows["label"], "target": target}.items()}
    model, kernel, bias = subject.checkpoint.model.double(), *(p.double() for p in candidate.alignment.projector.parameters())

    def loss(_: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        h_BTD = model.forward_with_taps(batch["x"], batch["t"], batch["y"], taps=(subject.tap,), stop=True)[1][subject.tap]
        z_BTC = F.conv2d(h_BTD.transpose(1, 2).unflatten(2, (8, 8)), kernel, bias, padding=1).flatten(2).transpose(1, 2)
        return 1 - F.cosine_similarity(z_BTC, batch["target"], dim=-1).mean(1)

    return naive_gradients(nn.ModuleList([model.x_embedder, model.t_embedder, *model.blocks[: subject.tap]]), loss, data)


def test_several_checkpoints_make_one_table(smoke_run: Path, plain_run: Path, tmp_path: Path) -> None:
    """Each row is the one that the checkpoint alone gives; samples are paired by image across runs."""
    words = (*WORDS, "--controls", "none", "--projector", "fit", "--targets", "uniform_mid")
    with pytest.raises(SystemExit):
        call(main, "--ckpt", smoke_run, plain_run, *words)
    with pytest.raises(ValueError, match="is the name of two checkpoints"):
        call(main, "--ckpt", smoke_run, smoke_run, *words, "--out", tmp_path / "both")
    assert call(main, "--ckpt", smoke_run, plain_run, *words, "--out", tmp_path / "both") == 0
    both = cells_of(tmp_path / "both")
    assert list(dict.fromkeys(both["run"])) == ["smoke", "plain"]
    assert call(main, "--ckpt", plain_run, *words, "--out", tmp_path / "plain") == 0
    alone = both[both["run"] == "plain"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, cells_of(tmp_path / "plain"), check_exact=True)
    samples = table.read(tmp_path / "both" / "alignment.samples.parquet")
    where = (samples["group"] == "all") & (samples["bin"] == 1)
    one, two = (
        table.estimate_again(
            both[(both["run"] == run) & (both["group"] == "all") & (both["bin"] == 1)].iloc[0], samples[where & (samples["run"] == run)]
        )
        for run in ("smoke", "plain")
    )
    g_one, g_two = (whole_gradients(run) for run in (smoke_run, plain_run))
    expected = naive.jackknife_interval(naive.ratio(g_one) - naive.ratio(g_two), naive.leave_one_out(g_one) - naive.leave_one_out(g_two))
    low, high = gsnr.difference_ci(one, two)
    assert (low, high) == pytest.approx(expected, rel=0, abs=1e-3 * (high - low)), "float32 against float64"
    assert [json.dumps(c["run"]) for c in table.provenance(tmp_path / "both" / "alignment.parquet")["checkpoints"]] == ['"smoke"', '"plain"']


def test_two_measurements_at_once_in_one_folder(smoke_run: Path, tmp_path: Path) -> None:
    """Each would take the other's pieces for its own."""
    words = ("--ckpt", smoke_run, "--probe", "controls", "--out", tmp_path, "--n-images", 8, "--bins", 2)
    with (
        ResumeCache(tmp_path / ".controls.resume").held(),
        pytest.raises(ValueError, match=r"\.controls\.resume: another process is measuring there"),
    ):
        call(main, *words, "--overwrite")
    assert call(main, *words) == 0
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Where a piece is kept; else there is nothing to go on from."""

    def measure(pieces: int) -> int:
        def stopped(self: Measurement, kept: ResumeCache, save_sums: bool) -> None:
            for piece in range(pieces):
                kept.rows(str(piece), lambda: {"maps": []})
            raise KeyboardInterrupt

        monkeypatch.setattr(Measurement, "_measured", stopped)
        one.run(resume=False, overwrite=False, save_sums=False)
        return 0

    monkeypatch.setattr(Measurement, "settings", {"weights": "ema"})
    one = Measurement(name="alignment", probe=aligned, options=TargetOptions(), subjects=[], out=tmp_path)
    for pieces, said in ((0, ""), (2, f"; the same command with --resume goes on: {tmp_path / '.alignment.resume'}")):
        with pytest.raises(SystemExit) as end:
            commandline.run(lambda pieces=pieces: measure(pieces), "gsnr probe", "")  # type: ignore[misc]
        assert end.value.code == 130 and capsys.readouterr().err == f"\ninterrupted{said}\n"
        assert (tmp_path / ".alignment.resume").is_dir() == bool(pieces)
    with pytest.raises(ValueError, match=r"other settings \(save_sums was False, now True\); --overwrite drops it"):
        one.run(resume=True, overwrite=False, save_sums=True)


@pytest.mark.parametrize(("word", "meant"), [("bf16", "bfloat16"), ("fp32", "float32"), ("tf32", "tf32")])
def test_precision_by_its_short_name(word: str, meant: str) -> None:
    """In settings and tables it is the long one."""
    assert build(TargetOptions, {"precision": word}, "--").precision == meant
