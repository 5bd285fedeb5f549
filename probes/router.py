"""The learned mixture weights (mid, deep, beta) over t at the checkpoint, and over training steps from the run's log (AHPA Fig. 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gsnr import logs as runlog
from gsnr.probes.common.options import ProbeOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, bin_columns
from gsnr.train.priors.layers import CACHED, DEEP, MID
from gsnr.train.runs.folder import ROUTER_GRID

SUMMARY = "the router's beta and alpha over t, at the checkpoint and over training steps"
KIND = "metrics"
SCALES = ()
Options = ProbeOptions


def cannot(subject: Subject, options: Options) -> str | None:
    name = subject.checkpoint.config.alignment["name"]
    if subject.checkpoint.alignment.router_weights(torch.zeros(1)):
        return None
    why = f"alignment {name!r} learns no weights over t alone"
    return f"{subject.checkpoint.folder}: {why}; probe a run of alignment 'ahpa' (any router but content)"


def plan(subject: Subject, options: Options) -> list[str]:
    return [f"{ROUTER_GRID} times in [0, 1], at the checkpoint and at every logged step"]


def _layer_names(subject: Subject, weights: dict[str, list[list[float]]]) -> dict[str, list[str]]:
    """group -> "number:name" of its layers; mid and deep are as many of G3 and G4 together as they have weights."""
    named = {group: list(layers) for group, layers in subject.header.layers.items()}
    layers = [*named.get(CACHED[MID], ()), *named.get(CACHED[DEEP], ())]
    mid = len(weights[MID][0]) if MID in weights else len(layers) - len(weights.get(DEEP, [[]])[0])
    return named | {MID: layers[:mid], DEEP: layers[mid:]}


def _rows(base: dict[str, Any], times: list[float], weights: dict[str, list[list[float]]], names: dict[str, list[str]]) -> list[dict[str, Any]]:
    """One row a time and weight: metric "beta" with group mid or deep, metric "alpha_mid" or "alpha_deep" with group = the layer."""
    rows = []
    for i, t in enumerate(times):
        place = bin_columns(i, t, t)
        for part, table in weights.items():
            labels = [group for group in weights if group != "beta"] if part == "beta" else names[part]
            metric = "beta" if part == "beta" else f"alpha_{part}"
            rows += [base | place | {"group": g, "metric": metric, "value": v} for g, v in zip(labels, table[i], strict=True)]
    return rows


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "metrics"; target "router" is the checkpoint, "router_log" the run's log (raw weights) up to that step."""
    empty = {"control": "none", "projector": "ckpt", "low": float("nan"), "high": float("nan")}
    shared = subject.columns("router", options) | empty
    alignment = subject.checkpoint.alignment
    t_K = torch.linspace(0, 1, ROUTER_GRID)
    device = next(alignment.parameters()).device  # a probe before this one may have taken it to a GPU
    with torch.no_grad():
        now = {name: w.tolist() for name, w in alignment.router_weights(t_K.to(device)).items()}
    names = _layer_names(subject, now)
    rows = _rows(shared | {"target": "router"}, t_K.tolist(), now, names)
    run = subject.checkpoint.run_folder
    lines = runlog.read(run / "router.jsonl", subject.checkpoint.step) if run else []
    for line in lines:
        weights = {part: line[part] for part in now}
        rows += _rows(shared | {"target": "router_log", "step": line["step"], "weights": "raw"}, line["t"], weights, names)
    return {"metrics": rows}, {"logged_steps": len(lines)}
