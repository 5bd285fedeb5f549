"""Presets: what a run differs in from the defaults of `gsnr.train.config`. METHOD-SIZE and ROW-SIZE, from one table of sizes and one of rows.

A row is one line of a table of the paper (or a control that it lacks): an alignment and its options, and the schedules of the losses. Every row
exists at the size the paper runs it at and at demo size; all rows of a size share data, recipe and seed and differ in these alone (REG in the class
token of its model, too). Only the methods of REPA's family keep REPA's learning rate and clip at full size (its published recipe).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from gsnr.commandline import meant
from gsnr.train import text_presets
from gsnr.train.demo_recipe import DEMO_PROJECTOR_WIDTH, demo_recipe

#              depth  hidden_size  num_heads  input_size     (SiT Table 1; input 32 is 256 pixels, 64 is 512)
SIZES = {
    "s2":      (12,     384,          6,        32),
    "b2":      (12,     768,         12,        32),
    "l2":      (24,    1024,         16,        32),
    "xl2":     (28,    1152,         16,        32),
    "xl2-512": (28,    1152,         16,        64),
}  # fmt: skip
PUBLISHED = {size.removesuffix("2").upper(): values[:3] for size, values in SIZES.items() if "-" not in size}  # of SiT-XL: depth, width, heads
DEMO, SMOKE = "demo", "smoke"

DEMO_TAPS = {2: 1, 3: 2, 4: 3, 8: 4}  # blocks of B's 12 -> of the demo's 6: in proportion, but kept apart


@dataclass(frozen=True, kw_only=True)
class Row:
    """table: of the AHPA paper, "-" for what it does not have. sizes: which full sizes it comes in. repa: REPA's learning rate and clip.
    schedules: of the losses, by their sections of the configuration. at: size -> what its preset has otherwise, section by section. model, recipe:
    what the row changes in the backbone, and at full size in training. runs_on_demo: False where the demo's data lack what it reads."""

    table: str
    alignment: dict[str, Any]
    sizes: tuple[str, ...] = ("b2",)
    repa: bool = False
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    at: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    runs_on_demo: bool = True


def _ahpa(table: str, **options: Any) -> Row:
    return Row(table=table, alignment={"name": "ahpa"} | options)


def _uniform(table: str, **options: Any) -> Row:
    return Row(table=table, alignment={"name": "uniform"} | options)


def _deep(tap: int) -> dict[str, Any]:
    return {"name": "uniform", "source": "deep", "tap": tap}


def _repa(at: dict[str, dict[str, dict[str, Any]]] | None = None, **schedules: Any) -> Row:
    """REPA under schedules, at all sizes."""
    return Row(table="-", alignment={"name": "repa"}, sizes=tuple(SIZES), repa=True, schedules=schedules, at=at or {})


def _stop(step: int, **alignment: Any) -> dict[str, dict[str, Any]]:
    return {"schedule": {"at": step}, "alignment": alignment}


# DAR's recipe (arXiv 2605.20708): four times SiT's batch, so that its steps see four times the images
DAR_RECIPE = {"batch": 1024, "precision": "bf16", "optim": {"lr": 1e-4}}


def _dar(queries: str, chunk: int = 4, alignment: dict[str, Any] | None = None) -> Row:
    """The final layer reads by an aggregator of its own; with an alignment by the last sublayer's. Of the demo's 12 sublayers a chunk is 6, not 8."""
    model = {"residual": "dar", "queries": queries, "chunk": chunk, "final": "own" if alignment is None else "reuse"}
    small = {DEMO: {"model": {"chunk": 6}}} if chunk == 8 else {}
    return Row(table="-", alignment=alignment or {"name": "none"}, sizes=("b2", "xl2"), model=model, recipe=DAR_RECIPE, at=small)


def _routed() -> dict[str, Row]:
    """Diffusion-adaptive routing, and SiT with as many parameters as its dynamic form."""
    wide = {"b2": {"model": {"hidden_size": 816}}, DEMO: {"model": {"hidden_size": 100}}}
    return {
        "dar-static": _dar("static"),
        "dar-static-t": _dar("static_t"),
        "dar-dynamic": _dar("dynamic"),
        "dar-static-c1": _dar("static", 1),
        "dar-static-c8": _dar("static", 8),
        "dar-static-dense": _dar("static", 0),
        "dar-static-repa": _dar("static", alignment={"name": "repa"}),
        "dar-static-ahpa": _dar("static", alignment={"name": "ahpa"}),
        "sit-plus": Row(table="-", alignment={"name": "none"}, sizes=("b2", "xl2"), model={"hidden_size": 1216}, recipe=DAR_RECIPE, at=wide),
    }


def _haste() -> Row:
    """HASTE (arXiv 2505.16792): REPA and attention, both at block 5 of B and 8 of L and XL, until a step."""
    both = {"name": "multi", "parts": ({"name": "repa"}, {"name": "attention"})}
    of_b: dict[str, dict[str, Any]] = {"schedule": {"at": 100_000}, "alignment": {"parts": ({"name": "repa", "tap": 5}, {"name": "attention"})}}
    at: dict[str, dict[str, dict[str, Any]]] = {"s2": of_b, "b2": of_b, "xl2-512": {"schedule": {"at": 300_000}}, DEMO: {"schedule": {"at": 700}}}
    stop = {"schedule": {"name": "stop", "at": 250_000}}
    return Row(table="-", alignment=both, sizes=tuple(SIZES), repa=True, schedules=stop, at=at, runs_on_demo=False)


def _repi(alignment: dict[str, Any], at_demo_size: dict[str, Any]) -> Row:
    """REPI (arXiv 2609.35292). Its 20K first steps of 400K are 140 of the demo's, whose teacher has no keys and values."""
    at = {DEMO: {"alignment": at_demo_size}}
    return Row(table="-", alignment=alignment, sizes=("b2", "l2", "xl2"), repa=True, at=at, runs_on_demo=False)


def _repi_rows() -> dict[str, Row]:
    """REPI alone, and with a REPA of weight 0.25 at block 4."""
    repa, small = {"name": "repa", "tap": 4, "weight": 0.25}, {"scaffold": 140}
    both = {"name": "multi", "parts": (repa, {"name": "repi"})}
    small_repa = repa | {"tap": DEMO_TAPS[4], "projector_width": DEMO_PROJECTOR_WIDTH}
    return {
        "repi": _repi({"name": "repi"}, small),
        "repi-repa": _repi(both, {"parts": (small_repa, {"name": "repi"} | small)}),
    }


def _scheduled() -> dict[str, Row]:
    """REPA under the schedules of other papers."""
    haste = {"s2": _stop(100_000, tap=5), "b2": _stop(100_000, tap=5), "xl2-512": _stop(300_000), DEMO: _stop(700)}
    snr, window, sigmoid = ({"name": name, "normalise": True} for name in ("t_snr", "t_window", "t_sigmoid"))
    reed = {"alignment": {"tap": 8}}
    ramped: dict[str, Any] = {"name": "ramp", "before": 0.0, "after": 1.0, "end": 50_000}
    two = {"name": "multi", "parts": ({"name": "repa", "tap": 8}, {"name": "pooled"})}
    return {
        "haste": _haste(),
        # HASTE without its attention half: block 5 of B; a quarter of the demo's steps, as of B's 400K
        "haste-features": _repa(haste, schedule={"name": "stop", "at": 250_000}),
        # Stable Velocity's VA-REPA (arXiv 2602.05435): its three forms, xi 0.7
        "va-repa": _repa(schedule=sigmoid),
        "va-repa-window": _repa(schedule=window),
        "va-repa-snr": _repa(schedule=snr),
        # REED (arXiv 2507.08980) without its second target, of a vision-language model: block 8 at all sizes, velocity loss from 0 to 1 in 50K steps
        "reed-image": _repa(
            {"s2": reed, "b2": reed, DEMO: {"velocity_schedule": {"end": 350}}},
            velocity_schedule=ramped,
        ),
        # with it: vectors of a vision-language model (group vlm of the cache, which the demo's lacks) at block 16
        "reed": Row(table="-", alignment=two, sizes=tuple(SIZES), repa=True, schedules={"velocity_schedule": ramped}, runs_on_demo=False),
    }


def _reg() -> Row:
    """REG (arXiv 2507.01467): DINOv2-B's class token, 768 channels, denoised beside the latent with weight 0.03; REPA of weight 0.5 over it and the
    patches, at block 4 of B, 8 of L and XL. The demo's teacher has 128 channels, and its pooled features for a class token."""
    alignment, small = {"name": "repa", "class_token": True}, {DEMO: {"model": {"extra_token": 128}}}
    return Row(table="-", alignment=alignment, sizes=("b2", "l2", "xl2"), repa=True, model={"extra_token": 768}, at=small)


def _methods() -> dict[str, Row]:
    every = tuple(SIZES)
    return {
        "sit": Row(table="2, 3, F.19", alignment={"name": "none"}, sizes=every),
        "ahpa": Row(table="3, D.13-D.17, F.19", alignment={"name": "ahpa"}, sizes=every),
        "uniform-mid": Row(table="7, E.18", alignment={"name": "uniform", "source": "mid"}, sizes=every),
        "uniform-deep": Row(table="7, E.18", alignment={"name": "uniform", "source": "deep"}, sizes=every),
        "uniform-both": Row(table="2, D.15", alignment={"name": "uniform"}, sizes=every),
        "static": Row(table="-", alignment={"name": "static"}, sizes=every),
        "heuristic": Row(table="D.15", alignment={"name": "heuristic"}, sizes=every),
        "ahpa-standardise": Row(table="-", alignment={"name": "ahpa", "features": "standardise"}, sizes=every),
        "ahpa-spatial": Row(table="-", alignment={"name": "ahpa", "features": "spatial"}, sizes=every),
        "repa": Row(table="3, E.18", alignment={"name": "repa"}, sizes=every, repa=True),
        "reg": _reg(),
        "irepa": Row(table="-", alignment={"name": "irepa"}, sizes=every, repa=True),
        "sra": Row(table="4", alignment={"name": "sra"}, sizes=every, repa=True),
        "sra2": Row(table="3, E.18", alignment={"name": "sra2"}, sizes=every, repa=True),
        "sra-cosine": Row(table="-", alignment={"name": "sra", "loss": "cos_token_axis", "weight": 0.5}, sizes=every, repa=True),
        "layersync": Row(table="-", alignment={"name": "layersync"}, sizes=every, repa=True),
        "gram": Row(table="-", alignment={"name": "gram"}, sizes=every, repa=True),
        "spare": Row(table="-", alignment={"name": "spare"}, sizes=every, repa=True),
        "spare-across": Row(table="-", alignment={"name": "spare", "across": 1.0}, sizes=every, repa=True),
        "rare": Row(table="-", alignment={"name": "rare"}, sizes=every, repa=True),
        "dupa": Row(table="-", alignment={"name": "dupa"}, sizes=every, repa=True),
        "disperse": Row(table="-", alignment={"name": "disperse"}, sizes=every, repa=True),
    }


def _ablations() -> dict[str, Row]:
    return {
        # Table 1: uniform deep at blocks of B's 12
        "tap2": _uniform("1", source="deep", tap=2),
        "tap3": _uniform("1", source="deep", tap=3),
        "tap4": _uniform("1", source="deep", tap=4),
        "tap8": _uniform("1", source="deep", tap=8),
        "multi": Row(table="1", alignment={"name": "multi", "parts": (_deep(3), _deep(4), _deep(8))}),
        # Table 2: sources (uniform-both is G3+G4)
        "source-g1": _uniform("2", source="G1"),
        "source-g2": _uniform("2", source="G2"),
        "source-g3": _uniform("2", source="G3"),
        "source-g4": _uniform("2", source="G4"),
        "source-g1-g4": _uniform("2, D.5", source="G1-G4"),
        # Table D.13: loss, weight, projector
        "loss-l1": _ahpa("D.13 (b)", loss="l1"),
        "loss-smooth-l1": _ahpa("D.13 (c)", loss="smooth_l1"),
        "weight-0.5": _ahpa("D.13 (d)", weight=0.5),
        "weight-2": _ahpa("D.13 (e)", weight=2.0),
        "projector-linear": _ahpa("D.13 (f)", projector="linear"),
        "projector-mlp3": _ahpa("D.13 (g)", projector="mlp3"),
        "projector-mlp5": _ahpa("D.13 (h)", projector="mlp5"),
        "projector-conv2": _ahpa("D.13 (i)", projector="conv2"),
        "projector-conv3": _ahpa("D.13 (j)", projector="conv3"),
        "projector-conv5": _ahpa("D.13 (k)", projector="conv5"),
        "projector-conv1x1": _ahpa("-", projector="conv1x1"),
        # Table D.14: split (4/4 is ahpa)
        "split-2-6": _ahpa("D.14", split="2/6"),
        "split-6-2": _ahpa("D.14", split="6/2"),
        # Table D.16: AHPA's block (3 is ahpa)
        "ahpa-tap4": _ahpa("D.16", tap=4),
        "ahpa-tap8": _ahpa("D.16", tap=8),
        # Table D.17: the router (mlp of depth 4 with the linear encoding is ahpa)
        "encoding-sinusoidal": _ahpa("D.17 (1)", t_encoding="sinusoidal"),
        "encoding-fourier": _ahpa("D.17 (2)", t_encoding="fourier"),
        "router-content": _ahpa("D.17 (3)", router="content"),
        "router-lookup": _ahpa("D.17 (4)", router="lookup"),
        "router-attention": _ahpa("D.17 (5)", router="attention"),
        "router-depth3": _ahpa("D.17 (6)", router_depth=3),
        "router-depth8": _ahpa("D.17 (8)", router_depth=8),
        "beta-sigmoid": _ahpa("-", beta="sigmoid"),
        # against a router that takes one layer and keeps it (docs/handover.md)
        "features-centre": _ahpa("-", features="centre"),
        "features-rms": _ahpa("-", features="rms"),
        "per-group": _ahpa("-", per_group=True),
        "router-lookahead": _ahpa("-", router_objective="lookahead"),
        "router-entropy": _ahpa("-", entropy=0.05),
        "router-temperature": _ahpa("-", temperature=4.0),
        "per-group-entropy": _ahpa("-", per_group=True, entropy=0.05),
        "heuristic-sigmoid": Row(table="D.3", alignment={"name": "heuristic", "schedule": "sigmoid"}),
    }


ROWS = _methods() | _repi_rows() | _scheduled() | _routed() | _ablations()


def _changed(row: Row, size: str, made: dict[str, Any]) -> dict[str, Any]:
    """A preset with the row's schedules, and with what the row has otherwise at this size."""
    made = made | {"model": made["model"] | row.model} | {section: dict(options) for section, options in row.schedules.items()}
    return made | {section: made[section] | change for section, change in row.at.get(size, {}).items()}


def _full(row: Row, size: str) -> dict[str, Any]:
    """A row at 256x256 or 512x512 (README of the authors' repository; Table A.9)."""
    depth, hidden_size, num_heads, input_size = SIZES[size]
    model = {"depth": depth, "hidden_size": hidden_size, "num_heads": num_heads, "input_size": input_size}
    made = {"model": model, "alignment": row.alignment} | ({"optim": {"lr": 1e-4, "clip": 1.0}} if row.repa else {})
    return _changed(row, size, made | row.recipe)


def _at_demo_size(alignment: dict[str, Any]) -> dict[str, Any]:
    small = dict(alignment)
    if "tap" in small:
        small["tap"] = DEMO_TAPS[small["tap"]]
    if "parts" in small:
        small["parts"] = tuple(_at_demo_size(part) for part in small["parts"])
    if small["name"] in ("repa", "gram", "dupa"):
        small["projector_width"] = DEMO_PROJECTOR_WIDTH
    return small


def _demo(alignment: dict[str, Any]) -> dict[str, Any]:
    """On the 64x64 demo data: minutes on two CPU cores."""
    return {
        "data": {"path": "demo", "workers": 0},
        "model": {"input_size": 8, "patch_size": 1, "hidden_size": 96, "depth": 6, "num_heads": 4, "num_classes": 10},
        "alignment": _at_demo_size(alignment),
        **demo_recipe(),
    }


def _smoke() -> dict[str, Any]:
    """Every part of the demo in seconds: for tests and for seeing the moving parts. Its numbers mean nothing."""
    small = _demo(ROWS["ahpa"].alignment)
    small["data"] |= {"demo_train": 256, "demo_heldout": 256}
    small["model"] |= {"hidden_size": 32, "depth": 3, "num_heads": 2}
    small["alignment"] |= {"tap": 2}
    return small | {"steps": 30, "batch": 16, "log_every": 5, "save_every": 10, "sample_every": 0}


# name -> row and size; `demo` is `ahpa-demo`
NAMES: dict[str, tuple[str, str]] = {
    DEMO: ("ahpa", DEMO),
    SMOKE: ("ahpa", SMOKE),
    **{f"{name}-{size}": (name, size) for name, row in ROWS.items() for size in (*row.sizes, DEMO)},
}


def find(name: str) -> dict[str, Any]:
    """The preset of that name. Raises ValueError listing the valid ones."""
    if name in text_presets.NAMES:
        return text_presets.at(*text_presets.NAMES[name])
    if name not in NAMES:
        if near := meant(name, (*NAMES, *text_presets.NAMES)):
            raise ValueError(f"preset {name!r} does not exist; did you mean {near[0]}? (--list-presets shows all)")
        sizes = ", ".join(SIZES)
        raise ValueError(
            f"preset {name!r} does not exist; choose demo, smoke, or ROW-demo and ROW-b2 for ROW in {', '.join(ROWS)}; "
            f"methods also come in {sizes}; or {', '.join(text_presets.NAMES)} (--list-presets shows all)"
        )
    return at(*NAMES[name])


def rows_at(size: str) -> tuple[str, ...]:
    """The rows that there are at a size."""
    return tuple(text_presets.ROWS if size in text_presets.TAPS else ROWS)


def at(row: str, size: str) -> dict[str, Any]:
    """A row at any size, also one that it has no preset for."""
    if size in text_presets.TAPS:
        return text_presets.at(row, size)
    if size == SMOKE:
        return _smoke()
    return _changed(ROWS[row], DEMO, _demo(ROWS[row].alignment)) if size == DEMO else _full(ROWS[row], size)


def is_model_name(name: str) -> bool:
    """SiT-XL/2, or SiT-DEPTHxWIDTHxHEADS/PATCH for a size that is not published."""
    return re.fullmatch(r"SiT-(S|B|L|XL|[1-9]\d*x[1-9]\d*x[1-9]\d*)/[1-9]\d*", name) is not None


def named_model(name: str) -> tuple[int, int, int, int]:
    """(depth, width, heads, patch) of a model's name. Raises ValueError listing the valid ones."""
    if not is_model_name(name):
        names = ", ".join(f"SiT-{size}/2" for size in PUBLISHED)
        raise ValueError(f"--model {name!r} does not exist; choose from {names} (/4 and /8 too), or write SiT-DEPTHxWIDTHxHEADS/PATCH")
    size, patch = name.removeprefix("SiT-").split("/")
    depth, width, heads = PUBLISHED[size] if size in PUBLISHED else (int(x) for x in size.split("x"))
    return depth, width, heads, int(patch)
