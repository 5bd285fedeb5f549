"""The contract of a criterion: it is measured on a small checkpoint, twice, and gives one interval a row."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from pathlib import Path

from gsnr import plugins
from gsnr.plugins import hold
from gsnr.probes.common.case import Case, row_of
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.subject import Subject, load
from gsnr.train.forking.rows import parse

ROWS = ("uniform-deep@1", "repa@2", "shuffled:repa@2")
CONSTANTS = {"LABEL": str, "SUMMARY": str, "PASSES": tuple}
IMAGES = 24


def check(name: str, run: Path | None = None) -> list[str]:
    """Raises ValueError for the first rule that criterion `name` breaks; what was checked otherwise.

    run: a run of preset smoke to measure (default: one is trained for the purpose, in seconds)."""
    for constant, kind in CONSTANTS.items():
        hold(isinstance(plugins.constant("criteria", name, constant), kind), name, f"{constant} is no literal {kind.__name__} at the top of the file")
    if run is not None:
        return _measured(name, run)
    with tempfile.TemporaryDirectory() as folder:
        from gsnr.train.command import main as train

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(["--preset", "smoke", "--alignment", "none", "--steps", "2", "--trackers", "none", "--out", f"{folder}/run"])
        return _measured(name, Path(folder) / "run")


def _case(subject: Subject, out: Path) -> Case:
    options = TargetOptions(n_images=IMAGES, fit_samples=256, fit_steps=3)
    return Case(subject=subject, rows=[row_of(parse(word), subject, 1, {}) for word in ROWS], options=options, train_images=32, lookahead=1, out=out)


def _measured(name: str, run: Path) -> list[str]:
    module, found = plugins.find("criteria", name), []
    subject = load(run, data=None, vae_name=None, model=None, weights="ema")
    before = {key: x.clone() for key, x in subject.checkpoint.model.state_dict().items()}
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            found.append(dict(module.measure(_case(subject, Path(folder)))))
    hold(list(found[0]) == list(ROWS), name, f"measure() gives {list(found[0])}, not one value a row")
    for value, low, high in found[0].values():
        ends = math.isnan(low) and math.isnan(high)
        hold(all(isinstance(x, float) for x in (value, low, high)), name, "a value or an end of its interval is no float")
        hold(ends or low <= value <= high, name, "a value lies outside its interval")
    hold(repr(found[0]) == repr(found[1]), name, "two measurements differ; draw random numbers from case.options.seed")
    after = subject.checkpoint.model.state_dict()
    hold(all(bool((before[key] == after[key]).all()) for key in before), name, "it changes the model")
    said = f"measured on a checkpoint of preset smoke: {len(ROWS)} rows, the same again, and the model is as before"
    return ["declared: LABEL, SUMMARY, PASSES", said]
