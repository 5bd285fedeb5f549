"""`gsnr cost`: what each alignment adds to a training step: multiply-accumulates, parameters, and measured time.

    gsnr cost --size b2 --rows sit,ahpa,repa,sra,sra2      the first row is what the others are compared with
    gsnr cost --size xl2 --rows sit,ahpa --macs-only       counts alone; nothing is allocated
    gsnr cost --size xl2 --rows sit,ahpa --batch 32 --precision bf16 --compile      on a GPU

MACs are those of matrix products and convolutions in one forward pass of one sample (half of PyTorch's flop count), attention products
included; the alignment's are the projector's, router's and mixture's, and those of SRA's teacher. Features of VAE and image teacher come
from the cache, so making them is no part of a step. Time is a whole step of the trainer (forward, backward, clipping, AdamW, moving
average) on one synthetic batch that stays on the device: each row takes turns with the first, and the ratio is the median over rounds of
row / first row of that round. `peak` is 6 MACs a sample (2 FLOPs each, forward once and backward twice) over the step's time, as a share
of what one large matrix product reaches in the same precision (SRA's teacher, which only goes forward, counts like the rest).
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from gsnr import commands
from gsnr.benchmarks import clock
from gsnr.commandline import Parser, choose
from gsnr.train import presets
from gsnr.train.config import ModelConfig, TrainConfig, resolve
from gsnr.train.data.batches import Batch
from gsnr.train.models.sit import SiT
from gsnr.train.objective import Objective, make_alignment

#            layers, channels: SD-VAE's groups and DINOv2-B's tokens; and the demo's
FULL_GROUPS = {"G1": (4, 128), "G2": (3, 256), "G3": (4, 512), "G4": (4, 512), "teacher": (1, 768)}
DEMO_GROUPS = {"G1": (4, 16), "G2": (3, 32), "G3": (4, 64), "G4": (4, 64), "teacher": (1, 128)}
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Of one forward pass of one sample."""

    backbone: int
    alignment: int


def objective_of(config: TrainConfig, device: str) -> Objective:
    """Freshly initialised on a device ("meta" allocates nothing)."""
    groups = groups_of(config)
    with torch.device(device):
        objective = Objective(SiT(**vars(config.model)), make_alignment(config.alignment, config.model, groups))
    return objective.to(device)  # the position table is made by numpy


def groups_of(config: TrainConfig) -> dict[str, tuple[int, ...]]:
    shapes = DEMO_GROUPS if config.data.path == "demo" else FULL_GROUPS
    return {name: (*shape, config.model.grid, config.model.grid) for name, shape in shapes.items()}


def synthetic_batch(config: TrainConfig, samples: int, device: str) -> Batch:
    """What a cache would give, at random."""
    m: ModelConfig = config.model
    with torch.device(device):
        batch = {name: torch.randn(samples, *shape).half() for name, shape in groups_of(config).items()}
        batch |= {name: torch.randn(samples, m.in_channels, m.input_size, m.input_size) for name in ("latent", "noise")}
        batch |= {name: torch.rand(samples) for name in ("t", "offset_u")}
        labels = torch.randint(m.num_classes, (samples,))
    return batch | {"label": labels, "label_drop": torch.zeros_like(labels, dtype=torch.bool)}


def _count(work: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops() // 2


def macs(config: TrainConfig) -> Macs:
    """Counted on the meta device."""
    objective, batch = objective_of(config, "meta"), synthetic_batch(config, 1, "meta")
    model, alignment = objective.model, objective.alignment
    hidden = {tap: torch.empty(1, config.model.grid**2, config.model.hidden_size, device="meta") for tap in alignment.taps}

    def aligned() -> None:
        alignment.loss(hidden, alignment.prepare(batch, model))

    return Macs(
        backbone=_count(lambda: model(batch["latent"], batch["t"], batch["label"], batch["label_drop"])),
        alignment=_count(aligned) if alignment.taps else 0,
    )


def stepper(config: TrainConfig, samples: int) -> Callable[[], None]:
    """A whole training step, warmed up, on the machine's accelerator or CPU."""
    from accelerate import Accelerator
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    from gsnr.train.step import optimisation_step

    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.precision)
    raw = objective_of(config, "cpu")
    raw.to(accelerator.device)
    if config.compile:
        for block in raw.model.blocks:
            block.compile()
    ema = copy.deepcopy(raw).requires_grad_(False).eval()
    objective, optimizer = accelerator.prepare(raw, torch.optim.AdamW(raw.parameters(), lr=1e-6, fused=True))
    average = get_ema_multi_avg_fn(config.optim.ema)
    batch = synthetic_batch(config, samples, str(accelerator.device))

    def one() -> None:
        optimisation_step(accelerator, objective, raw, ema, optimizer, batch, config.optim.clip, config.accumulate)
        with torch.no_grad():
            average(list(ema.parameters()), list(raw.parameters()), torch.tensor(1))

    for _ in range(3 if config.compile else 1):
        one()
    return one


def matmul_peak(precision: str) -> float:
    """FLOP/s of one large square matrix product in the dtype that autocast to this precision takes; the best of ten."""
    device, side = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    a = torch.randn(side, side, device=device, dtype={"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])

    return 2 * side**3 / min(clock.seconds(lambda: a @ a) for _ in range(11))  # the first is slow


def _measure(found: dict[str, dict[str, Any]], configs: dict[str, TrainConfig], samples: int, rounds: int, peak: float) -> None:
    """Adds to each row its time, in turns with the first row's: two models in memory at a time."""
    rows = list(configs)
    first = stepper(configs[rows[0]], samples)
    for row in tqdm(rows, desc="timing", unit="row", leave=False):
        step = stepper(configs[row], samples) if row != rows[0] else first
        spent = [(clock.seconds(step), clock.seconds(first)) for _ in range(rounds)]
        ratios = [mine / its for mine, its in spent] if row != rows[0] else [1.0]
        seconds = statistics.median(mine for mine, _ in spent)
        flops = 6 * samples * (found[row]["backbone_macs"] + found[row]["alignment_macs"])
        found[row] |= {"seconds": seconds, "time": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        found[row] |= {"peak": flops / seconds / peak}


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr cost", __doc__)
    parser.add_argument("--size", default="b2", metavar="SIZE", help=f"{', '.join(presets.SIZES)} or demo (default: b2)")
    parser.add_argument("--rows", default="sit,ahpa,uniform-both,repa,irepa,sra,sra2", metavar="A,B", help="rows of `gsnr train --list-presets`")
    parser.add_number("--batch", 4, "samples of a step", low=1, high=2**16)
    parser.add_number("--rounds", 5, "turns of each row", low=1, high=10**4, metavar="R")
    parser.add_argument("--precision", default="no", metavar="P", help="autocast to: no, bf16, fp16 (default: no, fp32)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, as `gsnr train --compile` does")
    parser.add_argument("--macs-only", action="store_true", help="count, do not measure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    choose("--size", args.size, (*presets.SIZES, presets.DEMO))
    choose("--precision", args.precision, PRECISIONS)
    if args.precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--precision fp16: needs a GPU; choose no or bf16")
    rows = list(dict.fromkeys(args.rows.split(",")))
    for row in rows:
        choose("--rows", row, presets.ROWS)
    configs = {row: resolve(presets.at(row, args.size), {"precision": args.precision, "compile": args.compile}) for row in rows}
    found: dict[str, dict[str, Any]] = {}
    for row, config in configs.items():
        counted = macs(config)
        parameters = sum(p.numel() for p in objective_of(config, "meta").alignment.parameters())
        found[row] = {"backbone_macs": counted.backbone, "alignment_macs": counted.alignment, "alignment_parameters": parameters}
    peak = 0.0 if args.macs_only else matmul_peak(args.precision)
    if not args.macs_only:
        try:
            _measure(found, configs, args.batch, args.rounds, peak)
        except RuntimeError as error:  # torch has a kind of its own for the GPU's memory alone
            if "memory" not in str(error):
                raise
            raise ValueError(f"--batch {args.batch}: too much for the memory of this machine") from error
    if args.json:
        print(json.dumps({"size": args.size, "batch": args.batch, "precision": args.precision, "matmul_peak": peak, "rows": found}, indent=1))
        return 0
    print(
        f"{args.size}, batch {args.batch}, precision {args.precision}, {torch.get_num_threads()} threads"
        + ("" if args.macs_only else f"; time as a ratio to {rows[0]}; one matrix product reaches {peak / 1e12:.2f} TFLOP/s")
    )
    times = "" if args.macs_only else f"{'time':>8}  [min-max]        step   steps/s  peak"
    print(f"{'row':20}{'backbone':>12}{'alignment':>13}{'share':>8}{'parameters':>12}{times}")
    for row, r in found.items():
        timed = (
            f"{r['time']:8.3f}  [{r['low']:.3f}-{r['high']:.3f}] {r['seconds']:8.3f} s {1 / r['seconds']:8.2f} {100 * r['peak']:4.0f} %"
            if "time" in r
            else ""
        )
        share = 100 * r["alignment_macs"] / r["backbone_macs"]
        counts = f"{r['backbone_macs'] / 1e9:9.3f} G {r['alignment_macs'] / 1e9:10.3f} G {share:6.1f} %{r['alignment_parameters'] / 1e6:10.2f} M"
        print(f"{row:20}{counts}{timed}")
    return 0


if __name__ == "__main__":
    commands.run("cost")
