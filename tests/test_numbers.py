"""Numbers in README and docs that a command prints, or a default says, in seconds: each is read out of its page and compared with the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import prod
from typing import Any

import pytest

from gsnr import balance, plugins, table
from gsnr.benchmarks import coverage
from gsnr.engines import AUTO, ENGINES
from gsnr.options import build
from tests.conftest import REPO
from tests.pages import first_column

MAKEFILE = (REPO / "Makefile").read_text()
NUMBERS = {"two": 2, "three": 3, "five": 5, "ten": 10, "thirteen": 13}


def page(name: str) -> str:
    """Its lines joined, so that a sentence is found wherever it breaks."""
    return " ".join((REPO / "docs" / f"{name}.md").read_text().split())


def said(name: str, pattern: str) -> list[float]:
    """The groups of the only place of that page where the pattern stands."""
    places = list(re.finditer(pattern, page(name)))
    assert len(places) == 1, f"docs/{name}.md has {len(places)} of {pattern}"
    return [float(NUMBERS.get(group.lower(), group.replace(",", "")) if group else "nan") for group in places[0].groups()]


def made(name: str) -> str:
    """A variable of the Makefile."""
    return re.findall(rf"^{name} \?= (.*)$", MAKEFILE, re.M)[0]


def config(kind: str, name: str) -> Any:
    return plugins.find(kind, name).Config()


def test_lists_are_those_of_the_code() -> None:
    text = lambda name: (REPO / "docs" / f"{name}.md").read_text()
    assert sorted(first_column(text("deciding"), "criterion")) == sorted(plugins.names("criteria"))
    assert sorted(first_column(text("evaluating"), "`--metrics`")) == sorted(plugins.names("metrics"))
    assert sorted(first_column(text("methods"), "`--schedule`")) == sorted(plugins.names("schedules"))
    assert sorted(first_column(text("stopping"), "`--stop-rule`")) == sorted(plugins.names("rules"))
    assert tuple(first_column(text("engines"), "engine")) == AUTO and set(AUTO) == set(ENGINES)
    assert set(plugins.names("samplers")) <= set(re.findall(r"`(\w+)`", text("pipeline")))


def test_weights_of_the_methods() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(?:[^|]*\|){3} ([^|]*[\d.]+(?: \(ours\))?) \|", (REPO / "docs" / "methods.md").read_text(), re.M)
    assert len(rows) == len(plugins.names("alignments")) - 2  # none has no loss, and multi those of its parts
    for name, loss in rows:
        assert float(re.findall(r"[\d.]+", loss.replace("smooth L1", ""))[-1]) == config("alignments", name).weight, name


def test_sizes_of_metrics() -> None:
    metric: Callable[[str], Any] = lambda name: plugins.find("metrics", name)
    assert said("evaluating", r"over (\d+) samples in the order of the file; mean") == [metric("is").SPLIT]
    assert said("evaluating", r"over (\d+) pairs of subsets of (\d+)") == [metric("kid").SUBSETS, metric("kid").SIZE]
    assert said("evaluating", r"projections on (\d+) random directions") == [metric("mind").DIRECTIONS]
    assert "to its third neighbour" in page("evaluating") and metric("precision").NEIGHBOUR == 3
    assert "to the fifth neighbour" in page("evaluating") and metric("density").NEIGHBOUR == 5


def test_steps_of_samplers() -> None:
    from gsnr.train import samplers

    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+|its own) \|", (REPO / "docs" / "sampling.md").read_text(), re.M)
    assert {name: None if steps == "its own" else int(steps) for name, steps in rows} == {
        name: samplers.steps_of(name) for name in plugins.names("samplers")
    }
    assert said("pipeline", r"Euler and the SDEs (\d+), Heun (\d+)") == [samplers.steps_of("euler"), samplers.steps_of("heun")]


def test_thresholds_of_rules_and_flags() -> None:
    plateau, rho, haste = (config("rules", name) for name in ("plateau", "rho", "haste_trigger"))
    assert said("stopping", r"differ by less than (\d+) %") == [100 * plateau.fall]
    assert said("stopping", r"rho < -([\d.]+) in (\w+) checks in a row") == [rho.limit, rho.consecutive]
    assert "in at least half of the bins" in page("stopping") and rho.bins == 0.5
    assert said("stopping", r"has the level ([\d.]+) divided") == [rho.alpha]
    assert said("stopping", r"cosine is below (-[\d.]+)") == [haste.below]
    assert said("monitoring", r"lies within -([\d.]+) and ([\d.]+)") == [balance.LIMIT] * 2
    assert said("reading", r"reaches (\d+) % or more of it") == [100 * table.EASY]


def test_defaults_of_probes_and_data() -> None:
    from gsnr.probes.common.options import TargetOptions
    from gsnr.train.prepare import command

    options = build(TargetOptions, {})
    assert said("reading", r"`gsnr_batch` is that times B \((\d+)\)") == [options.batch_ref]
    assert said("probing", r"`--first-image (\d+)` measures other images than the first (\d+)") == [options.n_images] * 2
    assert said("data", r"`--heldout` images \((\d+)\)") == [command._parser().get_default("heldout")]


def test_the_table_of_coverage() -> None:
    rows = re.findall(r"^\| (?:claim|weak|small-n|low-dimension|spiked|heavy-tails) +\|", (REPO / "docs" / "coverage.md").read_text(), re.M)
    assert said("coverage", r"of its (\d+) rows") == [len(rows)] == [len(coverage.table())]
    defaults = coverage._parser()
    assert said("coverage", r"default settings \((\d+) repeats a row, seed (\d+)") == [defaults.get_default("repeats"), defaults.get_default("seed")]


def test_plans_are_those_of_the_makefile() -> None:
    rows, controls, seeds = (made(f"FORK_{name}").split(",") for name in ("ROWS", "CONTROLS", "SEEDS"))
    starts = made("FORK_FROM").split()
    assert said("deciding", r"(thirteen) rows and (three) negative controls, (five) seeds, (\d+) steps, from (two)") == [
        len(rows), len(controls), len(seeds), float(made("FORK_STEPS")), len(starts)
    ]  # fmt: skip
    assert said("forks", r"for (\d+) steps at a learning rate of (1e-3)") == [float(made("FORK_STEPS")), float(made("FORK_LR"))]
    assert said("forks", r"forked at steps (\d+) and (\d+)") == [float(step) for step in starts]
    assert said("forks", r"(\d+) forks in 16 minutes") == [(len(rows) + len(controls) + 1) * len(seeds) * len(starts)]
    balance_seeds, steps = made("BALANCE_SEEDS").split(), float(made("BALANCE_STEPS"))
    assert said("deciding", r"(three) seeds of ([\d,]+) steps") == [len(balance_seeds), steps]
    assert said("deciding", r"(\d+) checkpoints, 2026") == [5 * len(balance_seeds) * steps / 400]
    assert said("stopping", r"(five) seeds of ([\d,]+) steps each") == [len(made("ROUTERS_SEEDS").split(",")), float(made("ROUTERS_STEPS"))]


def test_presets() -> None:
    from gsnr.train import presets
    from gsnr.train.config import resolve

    demo = resolve(presets.find("demo"))
    tap = demo.alignment["tap"]
    assert said("results", r"SiT of width (\d+) and depth (\d+) on (\d+) tokens, for ([\d,]+) steps of (\d+) images, with AHPA at block (\d+)") == [
        demo.model.hidden_size, demo.model.depth, demo.model.grid**2, demo.steps, demo.batch, tap
    ]  # fmt: skip
    stopped = {size: presets.at("haste-features", size)["schedule"]["at"] for size in ("b2", "l2", "xl2", "xl2-512", presets.DEMO)}
    rule = said("methods", r"REPA, at block 5 of B, stopped at (\d+)K \(B\), (\d+)K \(L, XL\), (\d+)K \(512\)")
    assert [1000 * k for k in rule] == [stopped["b2"], stopped["xl2"], stopped["xl2-512"]] and stopped["l2"] == stopped["xl2"]
    assert said("methods", r"HASTE's stop is at step (\d+) of ([\d,]+) .*?, REED's ramp ends at (\d+), and REPI's maps at (\d+)\.") == [
        stopped[presets.DEMO],
        demo.steps,
        presets.at("reed-image", presets.DEMO)["velocity_schedule"]["end"],
        presets.at("repi", presets.DEMO)["alignment"]["scaffold"],
    ]
    assert said("routing", r"SiT-XL has (\d+) sublayers") == [2 * resolve(presets.at("sit", "xl2")).model.depth]


def counted(row: str, size: str) -> tuple[int, int]:
    """Parameters of model and alignment."""
    from gsnr.train import presets
    from gsnr.train.config import resolve
    from gsnr.train.costing.counts import objective_of

    raw = objective_of(resolve(presets.at(row, size)), "meta")
    model, alignment = (sum(p.numel() for p in part.parameters()) for part in (raw.model, raw.alignment))
    return model, alignment


@pytest.mark.parametrize("size", ["B", "L", "XL"])
def test_parameters_and_what_they_take(size: str) -> None:
    """20 bytes a parameter in training, 16 in a checkpoint (docs/training.md)."""
    model, alignment = counted("ahpa", f"{size.lower()}2")
    rounded = [round(model / 1e6), round(alignment / 1e6), round(20 * (model + alignment) / 2**30, 1)]
    assert said("training", rf"\| SiT-{size}/2 \| (\d+) M \+ (\d+) M \| ([\d.]+) GiB \|") == rounded
    if size == "XL":
        assert said("training", r"two moments\): ([\d.]+) GiB for XL/2") == [round(16 * (model + alignment) / 2**30, 1)]


def test_parameters_of_routed_models() -> None:
    plus, dynamic = (counted(row, "xl2")[0] for row in ("sit-plus", "dar-dynamic"))
    assert said("routing", r"at XL: ([\d.]+) M, and ([\d.]+) M\)") == [round(plus / 1e6, 2), round(dynamic / 1e6, 2)]
    plus, dynamic = (counted(row, "demo")[0] for row in ("sit-plus", "dar-dynamic"))
    assert said("routing", r"\(([\d.]+) M parameters, beside ([\d.]+) M of `dar-dynamic`\)") == [round(plus / 1e6, 3), round(dynamic / 1e6, 3)]


def test_multiply_accumulates_at_512_pixels() -> None:
    """What `gsnr cost --size xl2-512 --rows ahpa --macs-only` prints; tests/train/test_cost.py holds those of 256 pixels."""
    from gsnr.train import presets
    from gsnr.train.config import resolve
    from gsnr.train.costing.counts import macs

    found = macs(resolve(presets.at("ahpa", "xl2-512")))
    backbone, alignment = round(found.backbone / 1e9, 1), round(found.alignment / 1e9, 1)
    share = round(100 * found.alignment / found.backbone, 1)
    assert said("resolution", r"SiT-XL/2 is then ([\d.]+) GMACs") == [backbone]
    assert said("costs", r"SiT-XL/2 takes ([\d.]+) GMACs, AHPA adds ([\d.]+) \(([\d.]+) %\)") == [backbone, alignment, share]


def test_what_an_image_takes() -> None:
    """MiB and, for ImageNet's images, TB, of the tables in docs/data.md and docs/resolution.md."""
    from gsnr.train import presets
    from gsnr.train.config import resolve
    from gsnr.train.costing.counts import FULL_GROUPS, bytes_of_an_image

    (images,) = said("data", r"TB for ImageNet's ([\d,]+):")

    def cell(count: float) -> str:
        return f"{count / 2**20 + 1e-6:.3f} ({images * count / 1e12:.2f})"  # 0.0625 is 0.063

    latent = bytes_of_an_image(resolve(presets.at("sit", "xl2")))
    half = {name: 2 * prod(shape) * 16**2 for name, shape in FULL_GROUPS.items()}
    eight = {name: prod(shape) * 16**2 + 2 * prod(shape) for name, shape in FULL_GROUPS.items()}  # with a scale a channel
    rows = {
        "G4": ("G4",),
        "G3, G4 (default)": ("G3", "G4"),
        "G1, G2, G3, G4": ("G1", "G2", "G3", "G4"),
        "G3, G4 and DINOv2-B": ("G3", "G4", "teacher"),
    }
    assert f"| none | {cell(latent)} | | {cell(2 * latent)} | |" in page("data")
    assert bytes_of_an_image(resolve(presets.at("ahpa", "xl2"))) == latent + half["G3"] + half["G4"]
    for row, groups in rows.items():
        plain, small = (latent + sum(kind[name] for name in groups) for kind in (half, eight))
        assert f"| {row} | {cell(plain)} | {cell(small)} | {cell(2 * plain)} | {cell(2 * small)} |" in page("data"), row
    full = bytes_of_an_image(resolve(presets.at("ahpa", "xl2-512")))
    assert f"| {full / 2**20:.3f} | {images * full / 1e12:.2f} |" in page("resolution")


def test_the_demos_vae() -> None:
    path = REPO / "train" / "demo" / "assets" / "demo_vae" / "diffusion_pytorch_model.safetensors"
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    parameters = sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    assert said("results", r"\(([\d.]+) M parameters, ([\d.]+) MB in fp16\)") == [round(parameters / 1e6, 2), round(path.stat().st_size / 1e6, 1)]


def test_the_vocabulary_of_the_demos_captions() -> None:
    from gsnr.train.demo.captions import vocabulary

    assert said("text", r"closed vocabulary of (\d+)") == [len(vocabulary())]
    assert said("text", r"`make captions`: .*?, (\d+) steps, guidance") == [float(re.findall(r"^TEXT_STEPS \?= (\d+)", MAKEFILE, re.M)[0])]
