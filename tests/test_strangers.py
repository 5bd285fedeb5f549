"""One file really is enough: plug-ins from outside are trained, probed by name, drawn and checked, and broken ones are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gsnr import plugin_check, plugins, table
from gsnr.probes.common.command import main as probe
from gsnr.train.command import main as train
from tests.conftest import REPO, call

STRANGERS = REPO / "tests" / "strangers"
SMALL = ("--bins", 2, "--n-images", 8)


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ENVIRONMENT, str(STRANGERS))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of preset smoke, aligned to the stranger's target through the stranger's projector."""
    out = tmp_path_factory.mktemp("strangers") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.ENVIRONMENT, str(STRANGERS))
        words = ("--preset", "smoke", "--alignment", "repa_l1", "--steps", 2, "--log-every", 1)
        assert call(train, *words, "--out", out) == 0
    return out


def test_kinds() -> None:
    assert {path.stem: plugins.kind_of(path) for path in sorted(STRANGERS.glob("[!_]*.py"))} == {
        "centroid": "metrics",
        "colours": "extractors",
        "fig_token_norm": "figures",
        "patience": "rules",
        "pulse": "schedules",
        "repa_l1": "alignments",
        "spread": "alignments",
        "taesana": "vaes",
        "token_norm": "probes",
        "wide": "projectors",
    }
    for kind in plugins.KINDS:
        assert plugins.names(kind) == sorted(plugins.names(kind))


def test_an_alignment_and_a_projector(run: Path, tmp_path: Path) -> None:
    """Trained, probed as a checkpoint's own target and by name, under its own label."""
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["align"] > 0
    assert json.loads((run / "config.json").read_text())["config"]["alignment"] == {"name": "repa_l1", "tap": 1, "weight": 1.0, "projector": "wide"}
    words = ("--ckpt", run, "--probe", "alignment", *SMALL, "--fit-samples", 128, "--fit-steps", 3)
    assert call(probe, *words, "--targets", "own,repa,uniform_deep", "--out", tmp_path) == 0
    cells = table.read(tmp_path / "alignment.parquet")
    assert list(dict.fromkeys(cells["target"])) == ["repa_l1", "repa", "uniform_deep"]
    assert set(cells[cells["target"] == "repa_l1"]["projector"]) == {"fit", "ckpt"}
    assert table.provenance(tmp_path / "alignment.parquet")["labels"] == {"repa_l1": "REPA by L1", "repa": "REPA"} | {
        name: label for name, label in table.provenance(tmp_path / "alignment.parquet")["labels"].items() if name not in ("repa_l1", "repa")
    }


def test_a_stranger_is_a_target_on_any_backbone(plain_run: Path, tmp_path: Path) -> None:
    words = (
        "--ckpt",
        plain_run,
        "--probe",
        "alignment",
        "--bins",
        1,
        "--n-images",
        8,
        "--fit-samples",
        128,
        "--fit-steps",
        3,
        "--controls",
        "none",
        "--projector",
        "fit",
    )
    assert call(probe, *words, "--targets", "repa_l1,spread", "--out", tmp_path) == 0
    cells = table.read(tmp_path / "alignment.parquet")
    assert set(zip(cells["target"], cells["projector"], strict=True)) == {("repa_l1", "fit"), ("spread", "none")}


def test_an_alignment_without_a_target(tmp_path: Path) -> None:
    """It trains, is probed (no controls and no fitted projector, which it has none of), and its loss falls."""
    words = ("--preset", "smoke", "--alignment", "spread", "--alignment.weight", "5", "--steps", 30, "--log-every", 10, "--out", tmp_path / "run")
    assert call(train, *words) == 0
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["align"] < lines[0]["align"]
    assert (
        call(
            probe, "--ckpt", tmp_path / "run", "--probe", "alignment,controls,denoising", *SMALL, "--targets", "own,uniform_mid", "--fit-samples", 128
        )
        == 0
    )
    cells = table.read(tmp_path / "run" / "probes" / "alignment.parquet")
    own = cells[(cells["target"] == "spread") & (cells["group"] == "all")]
    assert set(own["control"]) == {"none"} and set(own["projector"]) == {"none"} and len(own) == 2
    assert (own["signal"] + own["noise"] > 0).all()
    assert set(cells[cells["target"] == "uniform_mid"]["projector"]) == {"fit"}
    alone = ("--ckpt", tmp_path / "run", "--probe", "alignment", "--bins", 1, "--n-images", 8, "--targets", "own", "--out", tmp_path / "alone")
    assert call(probe, *alone) == 0, "a table without a target to be easy or not"
    assert set(table.read(tmp_path / "alone" / "alignment.parquet")["target"]) == {"spread"}


def test_a_probe_and_a_figure(run: Path, tmp_path: Path) -> None:
    from gsnr.figures.command import main as figures

    assert call(probe, "--ckpt", run, "--probe", "token_norm", *SMALL, "--power", "2", "--out", tmp_path) == 0
    rows = table.read(tmp_path / "token_norm.parquet", "token_norm")
    assert len(rows) == 2 and (rows["low"] < rows["value"]).all() and (rows["value"] < rows["high"]).all()
    assert table.provenance(tmp_path / "token_norm.parquet")["settings"]["power"] == 2.0
    assert call(figures, "--run", tmp_path, "--figure", "fig_token_norm", "--out", tmp_path / "figures") == 0
    assert (tmp_path / "figures" / "fig_token_norm.png").stat().st_size > 5000
    with pytest.raises(ValueError, match=r"--power 0.0: must be above 0"):
        call(probe, "--ckpt", run, "--probe", "token_norm", "--power", "0", "--out", tmp_path / "none")
    with pytest.raises(ValueError, match=r"--power: no option of router, but of token_norm"):
        call(probe, "--ckpt", run, "--probe", "router", "--power", "1", "--out", tmp_path / "none")


def test_a_metric_and_an_extractor(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of images whose mean colours are known, and which features are kept for."""
    from gsnr.train.evaluate import main as evaluate

    one = np.zeros((12, 8, 8, 3), np.uint8)
    one[::2] = 51
    np.savez(tmp_path / "a.npz", arr_0=one)
    np.savez(tmp_path / "b.npz", arr_0=one + np.uint8(102))
    words = ("--samples", tmp_path / "a.npz", "--reference", tmp_path / "b.npz", "--features", "colours")
    assert call(evaluate, *words, "--metrics", "centroid") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"centroid": pytest.approx(48 * 0.4**2, rel=1e-5)}
    assert call(evaluate, *words) == 0
    assert list(json.loads(capsys.readouterr().out)["metrics"]) == ["fid", "fid_se", "fid_infinity", "recall"]


@pytest.mark.parametrize("name", ["repa_l1", "wide", "spread", "pulse", "patience", "taesana", "token_norm", "fig_token_norm", "centroid", "colours"])
def test_check_plugin_passes(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The command that a stranger types. (The alignment needs the stranger's projector.)"""
    monkeypatch.setenv(plugins.ENVIRONMENT, str(STRANGERS / "wide.py") if name == "repa_l1" else "")
    assert call(plugin_check.main, STRANGERS / f"{name}.py") == 0
    assert len(capsys.readouterr().out.splitlines()) > 2


BROKEN = {
    # name: (file it is made of, what is changed in it, what is said)
    "coupled": ("spread", ("logsumexp(1)", "logsumexp(1) - unit_BTD.mean()"), "a sample's loss depends on the other samples"),
    "averaged": ("spread", (".flatten(1).logsumexp(1)", ".mean()"), r"loss of shape \(\)"),
    "undetached": ("repa_l1", (".detach()", ""), "a gradient flows into 'teacher'"),
    "unreached": ("spread", ("hidden[self.tap].float()", "hidden[self.tap].detach().float()"), "no gradient reaches the hidden state"),
    "failing": ("spread", ("/ self.temperature", "/ self.heat"), "fails .AttributeError: .*heat"),
    "helpless": ("spread", ('option(0.5, "of the softmax over pairs of tokens", above=0)', "0.5"), "option 'temperature' has no line of help"),
    "narrow": ("wide", ("out_channels)", "out_channels - 1)"), r"makes \(2, 4, 9\)"),
    "widthless": ("taesana", ("channels=WIDTH", "channels=LATENT"), "layer '4' has 64 channels, not the 32 that it says"),
    "backwards": ("taesana", ("(6, 7, 8)", "(8, 7, 6)"), "its layers run as 4, 6, 7, 8"),
    "groupless": ("taesana", ('"G2": (6', '"G5": (6'), "layer '6' is of group 'G5'; choose from G1, G2, G3, G4"),
    "noisy": ("taesana", ("/ 2), None", "/ 2 + 0.1 * images_BCHW.new_empty(()).normal_()), None"), "the same images have two latents"),
    "leaking": ("taesana", ("return self.model(", "return self.model.requires_grad_(True)("), "a gradient flows into mean"),
    "undecided": ("taesana", ("LATENT, 32", "LATENT, 16"), r"mean of \(2, 32, 1, 1\), torch.float32, for \(2, 3, 32, 32\)"),
    "nameless": ("taesana", ("name=str(p)", "name=str(p + 30)"), "layer '34' is no module under its encoder"),
    "vague": ("centroid", ('NEEDS = "moments"', 'NEEDS = "means"'), "NEEDS 'means' does not exist; choose from moments, rows"),
    "misnamed": ("centroid", ('{"centroid"', '{"center"'), "whose first key is not 'misnamed'"),
    "batchwise": ("colours", ("/ 255", "/ len(images_BHWC)"), "pool features depend on the other images of its batch"),
    "unmeasured": ("colours", ('"fid", "recall"', '"fid", "sfid"'), "metric 'sfid' takes features that it does not give"),
    "endless": ("pulse", (" and not self.over(step)", ""), "last = 20, but a weight that is not 0 in step 100"),
    "early": ("pulse", ("config.every * config.times", "config.every * config.times + 1"), "last = 21, but that step's weights are 0"),
    "negative": ("pulse", ("float(on)", "float(on) - 0.5"), "a weight below 0"),
    "mute": ("token_norm", ("SUMMARY", "SAID"), "SUMMARY is no literal str"),
    "random": ("token_norm", ("norm_N.mean()", "norm_N.mean() + np.random.rand()"), "two runs with the same options give different rows"),
    "columns": ("token_norm", ('"metric": "token_norm"', '"metrik": "token_norm"'), r"lacks \['metric'\] and has unknown \['metrik'\]"),
    "types": ("token_norm", ('{"value": value', '{"value": str(value)'), r"'value' = '.*', which is no float64"),
    "scales": ("token_norm", ('("bins", "n_images")', '("bins", "pictures")'), "SCALES names 'pictures'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_plugin_says_what_is_broken(name: str, tmp_path: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, (was, now), said = BROKEN[name]
    text = (STRANGERS / f"{source}.py").read_text()
    assert was in text
    (tmp_path / f"{name}.py").write_text(text.replace(was, now).replace('columns("token_norm"', f'columns("{name}"'))
    monkeypatch.setenv(plugins.ENVIRONMENT, str(STRANGERS / "wide.py"))
    if source == "token_norm":
        from gsnr.probes.common import contract

        plugins.add(str(tmp_path / f"{name}.py"))
        with pytest.raises(ValueError, match=said):
            contract.check(name, smoke_run)
        return
    with pytest.raises(ValueError, match=said):
        call(plugin_check.main, tmp_path / f"{name}.py")


def test_bad_plugins_are_refused_when_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugins.ENVIRONMENT)
    for name, text, said in (
        ("nothing", "x = 1", "no plug-in; one defines Alignment, Schedule, Router, Projector, VAE, integrate and evaluations, run and cannot, draw"),
        ("broken", "def run(:", "not a Python file"),
        ("script", "def run():\n    pass\n", "no plug-in"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(ValueError, match=said):
            plugins.take(["--plugins", str(tmp_path / f"{name}.py")])
    with pytest.raises(ValueError, match="--plugins nowhere: no such file or folder"):
        plugins.take(["--plugins", "nowhere"])
    with pytest.raises(ValueError, match="--plugins needs a file or folder"):
        plugins.take(["--plugins"])
    with pytest.raises(ValueError, match="holds no plug-in"):
        (tmp_path / "empty").mkdir()
        plugins.take(["--plugins", str(tmp_path / "empty")])
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n\n\nclass Projector:\n    pass\n")
    plugins.add(str(tmp_path / "exits.py"))
    with pytest.raises(ValueError, match=r"exits.py: cannot be imported \(SystemExit: 3\)"):
        plugins.find("projectors", "exits")
    monkeypatch.delenv(plugins.ENVIRONMENT)
    (tmp_path / "loose.py").write_text("class Config:\n    pass\n\n\nclass Alignment:\n    pass\n")
    plugins.add(str(tmp_path / "loose.py"))
    with pytest.raises(ValueError, match=r"loose.py: its Config is no dataclass of options"):
        call(train, "--preset", "smoke", "--batch", "1", "--out", tmp_path / "never")
    monkeypatch.delenv(plugins.ENVIRONMENT)
    (tmp_path / "fails.py").write_text("import torch\n\n1 / 0\n\n\nclass Projector:\n    pass\n")
    assert plugins.take(["a", "--plugins", str(tmp_path / "fails.py"), "b"]) == ["a", "b"]
    with pytest.raises(ValueError, match=r"fails.py: cannot be imported \(ZeroDivisionError: division by zero\)"):
        plugins.find("projectors", "fails")
    (tmp_path / "repa.py").write_text((STRANGERS / "repa_l1.py").read_text())
    plugins.add(str(tmp_path / "repa.py"))
    with pytest.raises(ValueError, match=r"alignment 'repa' is there already, in .*rename the file"):
        plugins.names("alignments")


def test_a_run_without_its_plug_in_is_not_called_damaged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gsnr

    monkeypatch.delenv(plugins.ENVIRONMENT)
    with pytest.raises(ValueError, match=r"alignment 'repa_l1' does not exist; .*named with --plugins, or in the environment variable") as error:
        gsnr.load_model(run)
    assert "damaged" not in str(error.value)
    monkeypatch.setenv(plugins.ENVIRONMENT, str(STRANGERS / "repa_l1.py"))
    with pytest.raises(ValueError, match=r"alignment.projector 'wide' does not exist; .*named with --plugins"):
        gsnr.load_model(run)


def test_a_loss_of_another_shape_does_not_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "averaged.py").write_text((STRANGERS / "spread.py").read_text().replace(".flatten(1).logsumexp(1)", ".mean()"))
    plugins.add(str(tmp_path / "averaged.py"))
    with pytest.raises(ValueError, match=r"alignment 'averaged': its loss has shape \(\), not \(16,\), one value per sample"):
        call(train, "--preset", "smoke", "--alignment", "averaged", "--steps", 1, "--out", tmp_path / "run")


def test_rows_of_a_kept_piece_are_checked_again(run: Path, tmp_path: Path) -> None:
    """--resume does not take over rows that no table takes."""
    from gsnr.probes.common.resume_cache import ResumeCache

    good = {"metrics": []}
    cache = ResumeCache(tmp_path / "pieces")
    assert cache.rows("bin0", lambda: good) == good
    with pytest.raises(ValueError, match=r"bin1.json: a row of kind 'metrics' lacks"):
        cache.rows("bin1", lambda: {"metrics": [{"value": 1.0}]})
    assert not (tmp_path / "pieces" / "bin1.json").exists()
    (tmp_path / "pieces" / "bin0.json").write_text('{"metrics": [{"value": 1.0}]}')
    with pytest.raises(ValueError, match=r"bin0.json: a row of kind 'metrics' lacks"):
        cache.rows("bin0", lambda: good)


@pytest.mark.parametrize("module", ["broad", "nothing"])
def test_a_package_offers_a_plug_in_by_an_entry_point(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugins.ENVIRONMENT)
    package, info = tmp_path / "somebodys_package", tmp_path / "somebodys_package-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "broad.py").write_text((STRANGERS / "wide.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nbroad = somebodys_package.{module}\n")
    assert "broad" not in plugins.names("projectors")
    monkeypatch.syspath_prepend(tmp_path)
    if module == "broad":
        assert plugins.find("projectors", "broad").__name__ == "somebodys_package.broad"
        return
    with pytest.raises(ValueError, match=r"entry point 'broad' of gsnr.plugins: there is no module 'somebodys_package.nothing'"):
        plugins.names("projectors")
