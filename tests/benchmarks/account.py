"""What an alignment probe of SiT-XL/2 takes: eight targets, ten bins, tap 8, REPA's projector; before and since targets share a pass.

    python -m tests.benchmarks.account

Arithmetic (`gsnr.probes.common.account`), held against counted products in tests/probes/test_account.py. Nothing is allocated.
"""

from __future__ import annotations

import torch

from gsnr.probes.common.account import account
from gsnr.train.config import ModelConfig
from gsnr.train.models.sit import SiT
from gsnr.train.projectors.repa import Projector

TARGETS, BINS, TAP = 8, 10, 8


def main() -> None:
    with torch.device("meta"):
        model = SiT(**(config := ModelConfig()).options)
        heads = [Projector(config.hidden_size, 768, config.grid) for _ in range(TARGETS)]
    print("| images a bin | | PFLOP, ten bins | sums, GiB |\n|---|---|---|---|")
    for images in (256, 4096):
        for name, together in (("each target by itself", False), ("eight in one pass", True)):
            found = account(model, TAP, heads, images, together=together)
            print(f"| {images} | {name} | {BINS * 2 * found.macs / 1e15:.1f} | {found.sums_bytes / 2**30:.1f} |")


if __name__ == "__main__":
    main()
