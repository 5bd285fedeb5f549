"""Lookahead: what a few real steps with the alignment do to the held-out velocity loss, by forks from the checkpoint on the same batches
(`gsnr.train.forking`). Above 0 the alignment has lowered it. One seed; the interval is over held-out images. Off unless steps are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from gsnr.probes.common.case import UNDEFINED, Case, Interval, on_all
from gsnr.train.data.heldout import require
from gsnr.train.forking import measure as measured
from gsnr.train.forking import start
from gsnr.train.forking.compare import differences
from gsnr.train.forking.job import Job
from gsnr.train.forking.rows import VANILLA, ForkRow, config_of

LABEL = "lookahead"
SUMMARY = "what a few real steps with the alignment take off the held-out velocity loss"
PASSES = ()


def measure(case: Case) -> Mapping[str, Interval]:
    if not case.lookahead or case.out is None:
        return on_all(case, lambda row: UNDEFINED)
    loaded, images = case.subject.checkpoint, case.options.n_images
    require(case.subject.splits["heldout"], images)
    asked = measured.Asked(images=images, frechet=0, metrics=())
    parent, reference = start.parent_of(loaded), measured.Reference.of(loaded, samples=False)
    finished = []
    for fork in (ForkRow(label=VANILLA, name=VANILLA), *(row.fork for row in case.rows)):
        config = config_of(fork, loaded.config, case.options.seed, loaded.step, case.lookahead, {})
        config = replace(config, save_every=case.lookahead)
        record = {"checkpoint": loaded.sha, "row": fork.label, "seed": config.seed}
        job = Job(row=fork, seed=config.seed, config=config, folder=case.out / f"{fork.folder}-{case.lookahead}", record=record, asked=asked)
        job.check()
        if not job.done():
            job.begin(parent)
            job.work(reference)
        finished.append(job.measured(None))
    found = {d.row: d for d in differences([f for f in finished if f is not None], VANILLA) if (d.t_low, d.t_high) == (0.0, 1.0)}
    flipped = {label: (-d.difference, *(-np.array(d.over_images))[::-1].tolist()) for label, d in found.items()}
    return on_all(case, lambda row: flipped[row.label])
