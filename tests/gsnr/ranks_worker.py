"""What each process of tests/gsnr/test_ranks.py does: every rank measures batches of its own and writes what it got."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist

import gsnr
from tests.gsnr.problems import PROBLEMS, digits, double, other_loss, split


def numbers(result: gsnr.Result) -> dict:
    return {
        group: {"n": e.n, "signal": e.signal, "noise": e.noise, "gsnr": e.gsnr, "q": e.q_n.tolist(), "r": e.r_n.tolist(), "ci": e.ci()}
        for group in result.groups
        for e in [result[group]]
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model, loss, data = PROBLEMS["attention"]()
    model, data = model.double(), double(data)
    parts = split(data, 4)  # 4 samples on rank 0, 2 on rank 1
    found = {}
    for engine in ("loop", "vmap", "ghost"):
        found[engine] = numbers(gsnr.measure(model, loss, [parts[rank]], engine=engine, groups=lambda n: n.split(".")[0], memory_bytes=0))
    found["none on rank 1"] = numbers(gsnr.measure(model, loss, [data] if rank == 0 else [], engine="ghost"))
    found["own"] = numbers(gsnr.measure(model, loss, [parts[rank]], distributed=False, draws=1, engine="ghost", interval=True)) if rank == 0 else {}
    c = gsnr.compare(model, loss, other_loss, [parts[rank]])["all"]
    found["compare"] = {"inner": c.inner, "cosine": c.cosine, "x": c.x_n.tolist()}
    mlp, cross_entropy, images = digits()
    by_class = {k: v[images["y"].argsort()] for k, v in images.items()}
    e = gsnr.measure(mlp, cross_entropy, split(split(by_class, 300)[rank], 100), engine="ghost", memory_bytes=rank << 30)["all"]
    found["digits"] = {"cov_sq": e.cov_sq, "ci": e.ci(), "caution": e.caution}
    broken = {k: v.clone() for k, v in parts[rank].items()}
    if rank == 1:
        broken["x"][1] = float("nan")
    try:
        gsnr.measure(model, loss, [broken])
    except ValueError as error:
        found["error"] = str(error)
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()
