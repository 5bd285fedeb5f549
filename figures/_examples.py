"""Small tables of every kind, made up, for the contract test of figures. One of their targets is known to no one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from types import ModuleType
from typing import Any

import numpy as np

from gsnr.estimates import Array, Estimate
from gsnr.table import CELL_COLUMNS, KINDS, MAP_COLUMNS, METRIC_COLUMNS, NAN, SAMPLE_COLUMNS, estimate_columns

Rows = list[dict[str, Any]]
STRANGER = "a_target_that_no_one_knows"
LABELS = {STRANGER: "Unheard of"}
EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
IMAGES = 6
SPREAD = 0.035  # of g_i . S: intervals of about +-0.02
GROUPS = ("all", "embedders", "block 1", "block 2", "attention", "MLP", "adaLN", "projector")
CANDIDATES = [
    ("ahpa", "none", "fit"),
    (STRANGER, "none", "fit"),
    ("uniform_mid", "none", "fit"),
    ("repa", "none", "fit"),
    ("sra", "none", "fit"),
    ("ahpa", "shuffled", "fit"),
    ("ahpa", "shuffled_class", "fit"),
    ("ahpa", "none", "ckpt"),
    ("ahpa", "shuffled", "ckpt"),
    ("ahpa", "constant", "ckpt"),
]
LAYERS = {"G3": ("8:down_blocks.2.resnets.0", "9:down_blocks.2.resnets.1"), "G4": ("12:down_blocks.3.resnets.1", "13:mid_block.resnets.0")}


def _row(columns: dict[str, str], **known: Any) -> dict[str, Any]:
    """A row of a kind: what is known, and plain values elsewhere."""
    plain: dict[str, Any] = {"string": "none", "int64": 1, "float64": NAN, "bool": False}
    return {name: known.get(name, plain[dtype]) for name, dtype in columns.items()}


def _bins() -> Iterator[dict[str, Any]]:
    for index, (low, high) in enumerate(pairwise(EDGES)):
        yield {"bin": index, "t_low": low, "t_high": high}


def _which(target: str, control: str, projector: str) -> dict[str, str]:
    return {"target": target, "control": control, "projector": projector}


def _sums(value: float) -> tuple[Array, Array]:
    """q_n, r_n of IMAGES gradients of noise 1 and that gsnr, alike but for a little; all zero for NaN."""
    if np.isnan(value):
        return np.zeros(IMAGES), np.zeros(IMAGES)
    return np.full(IMAGES, 1 + value), 1 + IMAGES * value + SPREAD * np.array([1.0, -1.0] * (IMAGES // 2))


def _measured() -> Iterator[tuple[tuple[str, str, str], str, dict[str, Any], float, float]]:
    """(key, group, bin, loss, gsnr), decaying over t, some below detection, one undefined."""
    for (i, key), (j, group), place in product(enumerate(CANDIDATES), enumerate(GROUPS), _bins()):
        value = 0.2 / (1 + i + j) - 0.04 * place["bin"] if key[1] != "shuffled" else 0.0
        yield key, group, place, 0.5 + 0.01 * i, NAN if (group, place["bin"]) == ("block 2", 3) else value


def _cells(run: str, probe: str) -> Rows:
    rows = []
    for key, group, place, loss, value in _measured():
        q_n, r_n = _sums(value)
        estimate, short = Estimate(group=group, q_n=q_n, r_n=r_n, sum_sq=float(r_n.sum())), key == CANDIDATES[3] and place["bin"] == 2
        angle = {"cos_denoise": 0.3, "cos_low": 0.1, "cos_high": 0.5, "gsnr_constructive": 0.09 * value}
        floor = {"floor": 0.0, "floor_low": -0.01, "floor_high": 0.01, "above_floor": value > 0.03, "underfit": short}
        known = estimate_columns(estimate, 256) | angle | (floor if key[1] == "none" else {}) | _which(*key) | place
        rows.append(_row(CELL_COLUMNS, run=run, probe=probe, group=group, loss=loss, **known))
    return rows


def _samples(run: str, probe: str) -> Rows:
    return [
        _row(SAMPLE_COLUMNS, run=run, group=group, **_which(*key), **place, image_id=i, t=place["t_low"], loss=loss, q=float(q), r=float(r))
        for key, group, place, loss, value in _measured()
        for i, (q, r) in enumerate(zip(*_sums(value), strict=True))
    ]


def _metric(run: str, probe: str, metric: str, value: float, **known: Any) -> dict[str, Any]:
    return _row(METRIC_COLUMNS, run=run, probe=probe, metric=metric, value=value, low=value - 0.05, high=value + 0.05, **known)


def _easiness(run: str, probe: str, **known: Any) -> Rows:
    values = {"constant_cosine": 0.5, "norm": 2.0, "mean_share": 0.4, "projector_cosine": 0.55, "constant_share": 0.91}
    return [_metric(run, probe, metric, value, **known) for metric, value in values.items()]


def _controls(run: str, probe: str) -> Rows:
    rows = [row for place in _bins() for row in _easiness(run, probe, target=STRANGER, projector="ckpt", group="target", **place)]
    for group, layers in {**LAYERS, "a_group": ("0",)}.items():
        for layer in layers:
            place: dict[str, Any] = {"target": group, "group": layer, "bin": -1}
            rows += [_metric(run, probe, metric, 0.4, **place) for metric in ("constant_cosine", "norm", "mean_share")]
            rows += [_metric(run, probe, "router_weight", 0.25, **place)] if group in LAYERS else []
    return rows


def _alignment_metrics(run: str, probe: str) -> Rows:
    return [row for key in CANDIDATES for place in _bins() for row in _easiness(run, probe, group="target", **_which(*key), **place)]


def _denoising_metrics(run: str, probe: str) -> Rows:
    places = [{"group": group, "target": "denoising", **place} for group in GROUPS for place in _bins()]
    return [_metric(run, probe, metric, 0.5, **place) for place in places for metric in ("noise_between", "noise_within")]


def _router(run: str, probe: str) -> Rows:
    rows = []
    weights = {"beta": ("mid", "deep"), "alpha_mid": LAYERS["G3"], "alpha_deep": LAYERS["G4"]}
    for target, step in (("router", 20), ("router_log", 0), ("router_log", 10), ("router_log", 20)):
        for index, t in enumerate(np.linspace(0, 1, 5)):
            for metric, groups in weights.items():
                place = {"target": target, "step": step, "bin": index, "t_low": float(t), "t_high": float(t), "projector": "ckpt"}
                rows += [_metric(run, probe, metric, 0.5 + side * 0.4 * t, group=g, **place) for g, side in zip(groups, (1, -1), strict=True)]
    return rows


def _representation(run: str, probe: str) -> Rows:
    rows = []
    for place in _bins():
        for block in range(1, 4):
            for metric, target, control in (("linear_probe_accuracy", "label", "constant"), ("cknna", "teacher", "shuffled")):
                here = {"group": f"block {block}", "target": target, **place}
                rows += [_metric(run, probe, metric, 0.2 * block, **here), _metric(run, probe, metric, 0.1, control=control, **here)]
    return rows


def _readability(run: str, probe: str) -> Rows:
    rows = []
    for place in _bins():
        for i, (group, name) in enumerate([(group, name) for group, names in LAYERS.items() for name in names] + [("a_group", "0")]):
            here: dict[str, Any] = {"target": f"{group}/{name}", "projector": "ridge", **place}
            for block in range(1, 4):
                about = here | {"group": f"block {block}"}
                rows.append(_metric(run, probe, "readable_r2", 0.9 - 0.1 * i - 0.1 * place["bin"] + 0.02 * block, **about))
                rows.append(_metric(run, probe, "readable_r2", 0.0, **about, control="shuffled"))
        rows.append(_metric(run, probe, "tap", 2.0, target="tap", group="block 2", **place))
        parts = {"alpha_mid": LAYERS["G3"], "alpha_deep": LAYERS["G4"], "beta": ("mid", "deep")}
        for target, group, i in [(target, group, i) for target, groups in parts.items() for i, group in enumerate(groups)]:
            for metric, projector in (("readable_share", "ridge"), ("predicted_weight", "ridge"), ("router_weight", "ckpt")):
                rows.append(_metric(run, probe, metric, float(i), target=target, group=group, projector=projector, **place))
    return rows


def _residual_stream(run: str, probe: str) -> Rows:
    """Of a plain model and of a routed one (chunks of 2) in one, of two blocks."""
    rows = [_metric(run, probe, "t_readability", 0.5 + 0.2 * k, target="stream", group=f"block {k}" if k else "embedding", bin=-1) for k in range(3)]
    names = ["embedding", "attention 1", "mlp 1", "attention 2", "mlp 2"]
    of_chunks = (names[:1], names[:2], ["embedding", "chunk 1"], ["embedding", "chunk 1", "attention 2"], ["embedding", "chunk 1", *names[3:]])
    for place in _bins():
        for k, metric in product((1, 2), ("rms", "gradient_rms", "gauge_free", "attention_share", "mlp_share", "token_cosine")):
            if k == 1 or metric != "token_cosine":
                rows.append(_metric(run, probe, metric, 0.2 * k + 0.1 * place["bin"], target="stream", group=f"block {k}", **place))
        for number, group in enumerate([*names[1:], "final"]):
            for i, source in enumerate(names[: number + 1] if group != "final" else []):
                rows.append(_metric(run, probe, "gate_gradient", 0.1 * (i - place["bin"]), target=source, group=group, **place))
            for i, source in enumerate(of_chunks[number]):
                share = 2 * (i + 1) / len(of_chunks[number]) / (1 + len(of_chunks[number]))
                rows.append(_metric(run, probe, "routing_weight", share, target=source, group=group, **place))
            if number:
                rows.append(_metric(run, probe, "routing_entropy", 0.9, target="stream", group=group, **place))
    return rows


def _variance(run: str, probe: str) -> Rows:
    places = [(group, i) for group in ("G1", "G4") for i in range(3)]
    return [_metric(run, probe, "explained_variance", 0.4 / (1 + i), target="features", group=group, bin=i) for group, i in places]


def _maps(run: str, probe: str) -> Rows:
    rng = np.random.default_rng(0)
    rows = []
    for group, side in (("image", 8), ("G1", 4), ("a_group", 4)):
        for image, y, x in np.ndindex(2, side, side):
            colours = dict(zip(("red", "green", "blue"), rng.uniform(size=3).tolist(), strict=True))
            rows.append(_row(MAP_COLUMNS, run=run, group=group, image_id=image, y=y, x=x, **colours))
    return rows


EXAMPLES: dict[str, Callable[[str, str], Rows]] = {
    "alignment": _cells,
    "alignment.samples": _samples,
    "alignment.metrics": _alignment_metrics,
    "vae_swap": _cells,
    "vae_swap.samples": _samples,
    "vae_swap.metrics": _alignment_metrics,
    "denoising": _cells,
    "denoising.samples": _samples,
    "denoising.metrics": _denoising_metrics,
    "controls": _controls,
    "router": _router,
    "representation": _representation,
    "readability": _readability,
    "residual_stream": _residual_stream,
    "vae_pca": _variance,
    "vae_pca.maps": _maps,
}


def table_for(figure: ModuleType, name: str, run: str) -> tuple[str, Rows]:
    """The kind of the table called `name` that a figure reads, and rows of it of a run: the figure's own example, or one of ours.

    Raises ValueError where there is neither, or the figure's own has not the columns of any kind."""
    if hasattr(figure, "example"):
        rows = [row | ({"run": run} if "run" in row else {}) for row in figure.example()]
    elif name in EXAMPLES:
        rows = EXAMPLES[name](run, figure.TABLE)
    else:
        raise ValueError(f"no example of a table {name!r}; add a function example() -> rows, or choose TABLE from {', '.join(EXAMPLES)}")
    kind = next((kind for kind, columns in KINDS.items() if rows and rows[0].keys() == columns.keys()), None)
    if kind is None:
        raise ValueError(f"example() gives no rows, or with columns of no kind of table; see `gsnr.table`, {', '.join(KINDS)}")
    return kind, rows
