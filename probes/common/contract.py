"""The contract of a probe: it is run on a small checkpoint, and every row is checked."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gsnr import plugins, table
from gsnr.plugins import hold, hold_options
from gsnr.probes.common.options import ProbeOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, load

SMALL = {"bins": 2, "n_images": 16, "fit_samples": 256, "fit_steps": 3, "train_images": 32}
CONSTANTS = {"SUMMARY": str, "KIND": str, "SCALES": tuple}
CALLS = ("cannot", "plan", "run")


def check(name: str, run: Path | None = None) -> list[str]:
    """Raises ValueError for the first rule that probe `name` breaks; what was checked otherwise.

    run: a run of preset smoke to probe (default: one is trained for the purpose, in seconds)."""
    _declared(name)
    if run is not None:
        return _measured(name, run)
    with tempfile.TemporaryDirectory() as folder:
        from gsnr.train.command import main as train

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(["--preset", "smoke", "--steps", "2", "--out", f"{folder}/run"])
        return _measured(name, Path(folder) / "run")


def _declared(name: str) -> None:
    """What its file has."""
    module = plugins.find("probes", name)
    for constant, kind in CONSTANTS.items():
        value = plugins.constant("probes", name, constant)
        hold(isinstance(value, kind), name, f"{constant} is no literal {kind.__name__} at the top of the file")
    hold(module.KIND in ("cells", "metrics"), name, f'KIND {module.KIND!r} is neither "cells" nor "metrics"')
    hold_options(getattr(module, "Options", None), ProbeOptions, name)
    has = {f.name for f in fields(module.Options)}
    for key in module.SCALES:
        hold(key in has, name, f"SCALES names {key!r}, which is none of its options {', '.join(sorted(has))}")
    for call in CALLS:
        hold(callable(getattr(module, call, None)), name, f"has no function {call!r}")


def _measured(name: str, run: Path) -> list[str]:
    module = plugins.find("probes", name)
    subject = load(run, data=None, vae_name=None, model=None, weights="ema")
    has = {f.name for f in fields(module.Options)}
    options = replace(module.Options(), **{key: value for key, value in SMALL.items() if key in has})
    reason = module.cannot(subject, options)
    declared = "declared: SUMMARY, KIND, SCALES, Options with a line of help each"
    if reason is not None:
        hold(isinstance(reason, str) and bool(reason), name, "cannot() gives neither None nor a reason")
        return [declared, f"not run: {reason}"]
    lines = module.plan(subject, options)
    hold(isinstance(lines, list) and bool(lines) and all(isinstance(x, str) for x in lines), name, "plan() gives no list of lines")
    rows, counts = _rows(name, module, subject, options)
    hold(bool(rows.get(module.KIND)), name, f"made no rows of its kind {module.KIND!r}")
    return [declared, f"run on a checkpoint of preset smoke: {counts}", "the same rows again, afresh and from the pieces that it kept"]


def _rows(name: str, module: Any, subject: Subject, options: ProbeOptions) -> tuple[Rows, str]:
    """Its rows, which are the table's, and are the same in a second run and in one that goes on from kept pieces."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for place in ("first", "second", "first"):
            rows, notes = module.run(subject, options, ResumeCache(Path(folder) / place), None)
            hold(isinstance(notes, dict), name, "run() gives no notes beside its rows")
            for kind, of_kind in rows.items():
                table.check_rows(kind, of_kind, name)
                for row in of_kind if kind in ("cells", "metrics") else ():
                    hold(row["probe"] == name, name, f"a row says probe {row['probe']!r}; make rows from subject.columns({name!r}, options)")
            found.append(json.dumps(rows, sort_keys=True, default=str))  # kept pieces have their keys in another order
    hold(found[0] == found[1], name, "two runs with the same options give different rows; draw random numbers from options.seed")
    hold(found[0] == found[2], name, "a run that goes on from the pieces it kept gives other rows")
    return rows, ", ".join(f"{len(of_kind)} rows of kind {kind!r}" for kind, of_kind in rows.items())
