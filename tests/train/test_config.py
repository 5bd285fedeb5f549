"""Precedence, types, unknown keys; presets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gsnr.train import presets
from gsnr.train.command import main
from gsnr.train.config import nest, resolve
from tests.listing import choose_from


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
    assert config.alignment == {
        "name": "uniform",
        "source": "mid",
        "tap": 2,
        "weight": 1.0,
        "split": None,
        "features": "none",
        "beta": "softmax",
        "projector": "conv3x3",
        "loss": "cosine",
        "per_group": False,
    }
    assert resolve(presets.find("demo"), nest({"alignment": "none"})).alignment == {"name": "none", "tap": None, "weight": 0.0}
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
        ({"alignment": "magic"}, choose_from("ahpa, heuristic, irepa, multi, none, repa, sra, sra2, static, uniform")),
        ({"alignment.tap": "7"}, "blocks 1 to 6"),
        ({"alignment": "none", "alignment.tap": "2"}, "'none' has no tap"),
        ({"alignment": "sra", "alignment.teacher_tap": "9"}, "alignment.teacher_tap 9: this model has blocks 1 to 6"),
        ({"alignment": "sra", "alignment.offset": "2"}, "alignment.offset 2.0: must be between 0 and 1"),
        ({"alignment": "multi"}, "alignment.parts is missing: a JSON list"),
        ({"alignment": "multi", "alignment.parts": "ahpa"}, "'ahpa' is not a JSON list"),
        ({"alignment": "multi", "alignment.parts": "3"}, "'3' is not a list"),
        ({"alignment": "multi", "alignment.parts": "[3]"}, "3 is not of type dict"),
        ({"alignment": "multi", "alignment.parts": '[{"tap": 2}]'}, "each part names an alignment"),
        ({"alignment": "multi", "alignment.parts": '[{"name": "multi"}]'}, "neither none nor multi"),
        ({"alignment": "multi", "alignment.parts": '[{"name": "ahpa", "tap": 8}]'}, "tap 8 of 'ahpa': this model has blocks 1 to 6"),
        ({"alignment": "multi", "alignment.parts": '[{"name": "ahpa", "colour": 8}]'}, "unknown option 'alignment.parts.colour'"),
        ({"alignment": "multi", "alignment.parts": '[{"name": "ahpa", "weight": -1}]'}, "weight -1.0 of 'ahpa'"),
        ({"alignment": "multi", "alignment.tap": "2"}, "a tap in each of its parts"),
        ({"seed": "-1"}, "--seed -1: must be at least 0"),
        ({"seed": "99999999999999999999"}, "--seed"),
        ({"model.num_heads": "0"}, "--model.num-heads 0: must be at least 1"),
        ({"model.patch_size": "0"}, "--model.patch-size 0"),
        ({"data.workers": "-1"}, "--data.workers -1: must be at least 0"),
        ({"optim.warmup": "-5"}, "--optim.warmup -5"),
        ({"data": "cache"}, "data is a section, not a value; its options are captions, control, demo_heldout"),
        ({"optim": "3"}, "optim is a section"),
        ({"alignment.weight": "nan"}, "alignment.weight nan"),
        ({"alignment.router_lr": "-1"}, "alignment.router-lr -1.0: must be at least 0"),
        ({"alignment.release": "-1"}, "alignment.release -1: must be at least 0"),
        ({"alignment.temperature": "0"}, "alignment.temperature 0.0: must be above 0"),
        ({"alignment.entropy": "nan"}, "alignment.entropy nan: must be a finite number"),
        ({"router_every": "-1"}, "--router-every -1: must be at least 0"),
        ({"label_dropout": "2"}, "--label-dropout 2.0: must be at least 0 and at most 1"),
        ({"label_dropout": "nan"}, "--label-dropout nan: must be a finite number"),
        ({"optim.ema": "1"}, "--optim.ema 1.0: must be at least 0 and below 1"),
        ({"gsnr_images": "2"}, "--gsnr-images 2: must be at least 3"),
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
    assert {"demo", "smoke", "ahpa-b2", "ahpa-l2", "ahpa-xl2", "sit-b2", "sit-l2", "sit-xl2", "repa-xl2-512"} <= set(presets.NAMES)
    for name in presets.NAMES:
        resolve(presets.find(name))
    assert [resolve(presets.find(f"ahpa-{s}")).alignment["tap"] for s in ("b2", "l2", "xl2")] == [3, 6, 7]  # Table A.9
    a, b = resolve(presets.find("ahpa-b2")), resolve(presets.find("sit-b2"))
    assert (a.optim, a.model, a.steps, a.batch) == (b.optim, b.model, b.steps, b.batch), "they differ in the alignment only"
    with pytest.raises(ValueError, match="choose demo, smoke, or ROW-demo"):
        presets.find("nope")


def test_published_defaults_per_model_size() -> None:
    """Taps of B, L, XL and weights, as the methods' published code has them (AHPA: Table A.9)."""
    published = {
        "ahpa": ((3, 6, 7), 1.0),
        "repa": ((4, 8, 8), 0.5),
        "irepa": ((4, 8, 8), 1.0),
        "sra": ((3, 6, 8), 0.2),
        "sra2": ((2, 8, 8), 1.0),
        "haste-features": ((5, 8, 8), 0.5),
        "va-repa": ((4, 8, 8), 0.5),
        "reed-image": ((8, 8, 8), 0.5),
        "layersync": ((3, 8, 8), 0.2),
        "disperse": ((3, 6, 7), 0.5),
        "rare": ((4, 8, 8), 1.0),
        "dupa": ((4, 8, 8), 0.5),
        "sra-cosine": ((3, 6, 8), 0.5),
    }
    for method, (taps, weight) in published.items():
        found = [resolve(presets.find(f"{method}-{size}")) for size in ("b2", "l2", "xl2")]
        assert tuple(c.alignment["tap"] for c in found) == taps
        assert {c.alignment["weight"] for c in found} == {weight}
    assert [resolve(presets.find(f"sra-{size}")).alignment["teacher_tap"] for size in ("b2", "l2", "xl2")] == [8, 16, 20]
    assert [resolve(presets.find(f"haste-features-{size}")).schedule["at"] for size in ("b2", "l2", "xl2", "xl2-512", "demo")] == [
        *(100_000, 250_000, 250_000, 300_000),
        700,
    ]
    assert [resolve(presets.find(f"layersync-{size}")).alignment["target_tap"] for size in ("b2", "l2", "xl2")] == [7, 14, 16]
    repa, ahpa = resolve(presets.find("repa-b2")).optim, resolve(presets.find("ahpa-b2")).optim
    assert (repa.lr, repa.clip, ahpa.lr, ahpa.clip) == (1e-4, 1.0, 2e-4, 2.0)


def test_every_row_is_a_preset_of_the_demo_and_differs_in_the_alignment_alone() -> None:
    """The rows of Tables 1, 2, D.13-D.17 by what they set; at demo size all share everything else."""
    demo = resolve(presets.find("demo"))
    for row in presets.ROWS:
        made = resolve(presets.find(f"{row}-demo"))
        changed = ("alignment", *presets.ROWS[row].schedules, *(("model",) if presets.ROWS[row].model else ()))
        shared = {section: getattr(demo, section) for section in changed}
        assert replace(made, **shared) == demo
    b2 = {row: resolve(presets.find(f"{row}-b2")).alignment for row in presets.ROWS}
    assert [b2[f"tap{k}"]["tap"] for k in (2, 3, 4, 8)] == [2, 3, 4, 8]
    assert [part["tap"] for part in b2["multi"]["parts"]] == [3, 4, 8]
    assert [b2[f"projector-{p}"]["projector"] for p in ("linear", "mlp3", "mlp5", "conv2", "conv3", "conv5")] == [
        "linear",
        "mlp3",
        "mlp5",
        "conv2",
        "conv3",
        "conv5",
    ]
    assert [b2[f"router-{r}"]["router"] for r in ("content", "lookup", "attention")] == ["content", "lookup", "attention"]
    changes = {row: (options, presets.ROWS[row].schedules, presets.ROWS[row].model) for row, options in b2.items()}
    different = {json.dumps(changed, sort_keys=True) for changed in changes.values()}
    same = {"tap3": "uniform-deep", "source-g3": "uniform-mid", "source-g4": "uniform-deep"}  # one thing under the names of two tables
    for row, twin in same.items():
        assert b2[row] | {"source": b2[twin]["source"]} == b2[twin]
    assert len(different) >= len(b2) - len(same)


def test_the_list_names_every_row_and_its_table(capsys: pytest.CaptureFixture) -> None:
    assert main(["--list-presets"]) == 0
    printed = capsys.readouterr().out
    for row in presets.ROWS:
        assert f"\n{row} " in printed
    for table in ("D.13 (b)", "D.14", "D.15", "D.16", "D.17 (8)"):
        assert table in printed


def test_uniform_takes_its_tap_from_the_preset() -> None:
    """--alignment uniform on a B/2 preset taps where ahpa does unless told otherwise."""
    config = resolve(presets.find("ahpa-l2"), nest({"alignment": "uniform"}))
    assert config.alignment["tap"] == 6


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ({"model.queries": "dynamic"}, "--model.queries dynamic: is of a routed model; add --model.residual dar"),
        ({"model.residual": "dar", "model.depth": 3}, "--model.chunk 4: 3 blocks have 6 sublayers, which it must divide"),
    ],
)
def test_options_of_routing_go_with_it(flat: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve(nest(flat))
