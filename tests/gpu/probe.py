"""`gsnr probe` of a SiT-XL/2 as somebody else's file (random weights, random data), at the size at which one would use it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gsnr.probes.common import command as probe
from gsnr.train import loader_benchmark, presets
from gsnr.train.config import resolve
from gsnr.train.convert import command as convert
from gsnr.train.models.sit import SiT
from tests.gpu.clock import forget_peak, peak_gib

TITLE = "Probes of SiT-XL/2"
LIMIT_S = 170


def _file(path: Path, model: dict[str, Any]) -> None:
    """What SiT's authors would have saved; the modulations are not 0, as in a model that was trained."""
    torch.manual_seed(0)
    made = SiT(**model)
    for name, p in made.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            nn.init.normal_(p, std=0.02)
    torch.save({"ema": made.state_dict()}, path)


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    config = resolve(presets.at("ahpa", "smoke" if toy else "xl2"))
    m, n = config.model, 8 if toy else 256
    with tempfile.TemporaryDirectory(prefix="gsnr-gpu-") as folder:
        cache, file, ckpt, out = (Path(folder) / name for name in ("cache", "sit.pt", "sit", "tables"))
        start = time.perf_counter()
        loader_benchmark.synthetic_cache(cache, config, images=n, dtype="float16", heldout=n)
        _file(file, config.model.options)
        yield {"what": f"{2 * n} random images and a file of random weights made", "seconds": time.perf_counter() - start}
        start = time.perf_counter()
        named = ["--model", f"SiT-{m.depth}x{m.hidden_size}x{m.num_heads}/{m.patch_size}"] if toy else []
        convert.main(["--ckpt", str(file), "--out", str(ckpt), "--from", "sit", *named])
        yield {"what": "gsnr convert of the file", "seconds": time.perf_counter() - start}
        shared = ["--ckpt", str(ckpt), "--data", str(cache), "--n-images", str(n), "--bins", "1"]
        fitted = ["--fit-samples", "128" if toy else "4096"]
        targets = [*fitted, "--controls", "none", "--targets"]
        for what, options in {
            "denoising": ["--probe", "denoising"],
            "alignment, one target": ["--probe", "alignment", *targets, "uniform_deep"],
            "alignment, two targets and their shuffled controls": [
                *["--probe", "alignment", *fitted, "--controls", "shuffled"],
                *["--targets", "uniform_mid,uniform_deep"],
            ],
        }.items():
            forget_peak()
            start = time.perf_counter()
            probe.main([*shared, *options, "--out", str(out / what.replace(" ", "-").replace(",", ""))])
            yield {"what": f"{what}: 1 bin, n = {n}", "seconds": time.perf_counter() - start, "peak, GiB": peak_gib()}
