"""Precedence, types, unknown keys; presets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train import presets
from train.__main__ import main
from train.config import nest, resolve


def test_precedence_preset_file_command_line(tmp_path: Path) -> None:
    preset = presets.find("demo")
    file = {"optim": {"lr": 0.5, "clip": 9.0}, "batch": 7}
    config = resolve(preset, file, nest({"optim.lr": "0.25", "steps": "11"}))
    assert config.optim.lr == 0.25  # command line over file
    assert config.optim.clip == 9.0 and config.batch == 7  # file over preset
    assert config.optim.ema == 0.99 and config.model.depth == 6  # preset over defaults
    assert config.optim.beta2 == 0.999  # default
    assert config.steps == 11


def test_the_command_resolves_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"steps": 3, "batch": 4, "seed": 8}))
    out = tmp_path / "run"
    assert main(["--preset", "smoke", "--config", str(file), "--steps", "1", "--optim.lr", "1e-5", "--out", str(out)]) == 0
    saved = json.loads((out / "config.json").read_text())["config"]
    assert (saved["steps"], saved["batch"], saved["seed"], saved["optim"]["lr"], saved["log_every"]) == (1, 4, 8, 1e-5, 5)


def test_changing_the_alignment_drops_the_options_of_the_one_before() -> None:
    config = resolve(presets.find("demo"), nest({"alignment": "uniform", "alignment.source": "mid"}))
    assert config.alignment == {"name": "uniform", "source": "mid", "tap": 2, "weight": 1.0, "split": None, "projector": "conv3x3"}
    assert resolve(presets.find("demo"), nest({"alignment": "none"})).alignment == {"name": "none"}
    assert resolve(presets.find("demo"), nest({"alignment.weight": "0.5"})).alignment["tap"] == 2


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"optim.nope": "1"}, r"unknown option 'optim.nope'; optim has beta1"),
        ({"nope": "1"}, "unknown option 'nope'"),
        ({"alignment.nope": "1"}, "unknown option 'alignment.nope'"),
        ({"optim.lr": "fast"}, "optim.lr: 'fast' is not of type float"),
        ({"steps": "1.5"}, "steps: '1.5' is not of type int"),
        ({"steps": "0"}, "at least 1"),
        ({"precision": "fp8"}, "choose from no, bf16, fp16"),
        ({"alignment": "magic"}, "choose from ahpa, none, uniform"),
        ({"alignment.tap": "7"}, "blocks 1 to 6"),
        ({"seed": "-1"}, "--seed -1: must be at least 0"),
        ({"seed": "99999999999999999999"}, "--seed"),
        ({"model.num_heads": "0"}, "--model.num-heads 0: must be at least 1"),
        ({"model.patch_size": "0"}, "--model.patch-size 0"),
        ({"data.workers": "-1"}, "--data.workers -1: must be at least 0"),
        ({"optim.warmup": "-5"}, "--optim.warmup -5"),
        ({"data": "cache"}, "data is a section, not a value; its options are demo_heldout"),
        ({"optim": "3"}, "optim is a section"),
        ({"alignment.weight": "nan"}, "alignment.weight nan"),
        ({"label_dropout": "2"}, "between 0 and 1"),
    ],
)
def test_bad_options_are_named(flat: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(presets.find("demo"), nest(flat))


@pytest.mark.parametrize("text", ["[]", '{"alignment": 5}', '{"config": 3}', "{", "\xff\xfe"])
def test_bad_files_are_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"--config .*c.json|alignment is a section"):
        main(["--preset", "smoke", "--config", str(file), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_presets() -> None:
    assert {"demo", "smoke", "ahpa-b2", "ahpa-l2", "ahpa-xl2", "sit-b2", "sit-l2", "sit-xl2"} <= set(presets.PRESETS)
    for name in presets.PRESETS:
        resolve(presets.find(name))
    assert [resolve(presets.find(f"ahpa-{s}")).alignment["tap"] for s in ("b2", "l2", "xl2")] == [3, 6, 7]  # Table A.9
    a, b = resolve(presets.find("ahpa-b2")), resolve(presets.find("sit-b2"))
    assert (a.optim, a.model, a.steps, a.batch) == (b.optim, b.model, b.steps, b.batch), "they differ in the alignment only"
    with pytest.raises(ValueError, match="choose from demo, smoke"):
        presets.find("nope")


def test_uniform_takes_its_tap_from_the_preset() -> None:
    """--alignment uniform on a B/2 preset taps where ahpa does unless told otherwise."""
    config = resolve(presets.find("ahpa-l2"), nest({"alignment": "uniform"}))
    assert config.alignment["tap"] == 6
