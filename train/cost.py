"""`gsnr cost`: what each alignment adds to a training step, and what a sample costs: multiply-accumulates, parameters, memory, measured time.

    gsnr cost --size b2 --rows sit,ahpa,repa,sra,sra2      the first row is what the others are compared with
    gsnr cost --size xl2 --rows sit,ahpa --macs-only       counts alone; nothing is allocated
    gsnr cost --size coco --rows mmdit,repa,sra2,ahpa      text to image
    gsnr cost --size xl2 --rows sit,ahpa --batch 32 --precision bf16 --compile      on a GPU

MACs are those of matrix products and convolutions in one forward pass of one sample (half of PyTorch's flop count), attention products and what a
routed model mixes its sources by included; `weights` are the backbone's parameters, a class token's among them. The alignment's are the
projector's, router's and mixture's, and the MACs of SRA's teacher. Features of VAE and image teacher come from the cache, so making them is no
part of a step. `memory` is what autograd keeps of one sample until backward, `image` what a step reads of one from a cache of float16. Time is a
whole step of the trainer (forward, backward, clipping, AdamW, moving average) on one synthetic batch that stays on the device: each row takes
turns with the first, and the ratio is the median over rounds of row / first row of that round. `peak` is 6 MACs a sample (2 FLOPs each, forward
once and backward twice) over the step's time, as a share of what one large matrix product reaches in the same precision (SRA's teacher, which
only goes forward, counts like the rest). `latency` is a forward of one sample with its alignment. Below the table: one sample and a batch through
--sampler, without guidance, timed over a few of its steps; and one picture through the VAE's encoder and decoder. At size xl2 the paper's row
stands below ours (Table I.21).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from gsnr import commands
from gsnr.commandline import Parser, choose, chosen
from gsnr.train import presets, text_presets
from gsnr.train.config import TrainConfig, alignment_config, resolve
from gsnr.train.costing import activations, counts, paper, sampling, steps

PRECISIONS = ("no", "bf16", "fp16")


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr cost", __doc__)
    parser.add_argument("--size", default="b2", metavar="SIZE", help=f"{', '.join(presets.SIZES)}, demo; coco, demo-text (default: b2)")
    parser.add_argument("--rows", default="sit,ahpa,uniform-both,repa,irepa,sra,sra2", metavar="A,B", help="rows of `gsnr train --list-presets`")
    parser.add_number("--batch", 4, "samples of a step", low=1, high=2**16)
    parser.add_number("--rounds", 5, "turns of each row", low=1, high=10**4, metavar="R")
    parser.add_argument("--precision", default="no", metavar="P", help="autocast to: no, bf16, fp16 (default: no, fp32)")
    parser.add_argument("--sampler", default="euler", metavar="NAME", help="whose samples are timed: euler, heun, sde, sde_sit (default: euler)")
    parser.add_number("--sampling-steps", None, "steps of the sampler (default: its own)", low=1, high=100000)
    parser.add_argument("--compile", action="store_true", help="compile the blocks, as `gsnr train --compile` does")
    parser.add_argument("--macs-only", action="store_true", help="count, do not measure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _counted(config: TrainConfig) -> dict[str, Any]:
    macs = counts.macs(config)
    objective = counts.objective_of(config, "meta")
    of_model, of_alignment = (sum(p.numel() for p in part.parameters()) for part in (objective.model, objective.alignment))
    found = {"backbone_macs": macs.backbone, "backbone_parameters": of_model}
    found |= {"alignment_macs": macs.alignment, "alignment_parameters": of_alignment}
    return found | {"activation_bytes": activations.activations(config), "image_bytes": counts.bytes_of_an_image(config)}


def _timed(found: dict[str, dict[str, Any]], configs: dict[str, TrainConfig], args: Any) -> tuple[float, sampling.Sampling]:
    """Adds to each row its times. (FLOP/s of a matrix product, what a sample takes.) Raises ValueError where the memory does not do."""
    try:
        peak = steps.matmul_peak(args.precision)
        first = next(iter(configs.values()))
        drawn = sampling.sampling(first, args.sampler, args.sampling_steps, args.batch, args.rounds)
        for row, config in configs.items():
            found[row]["latency"] = sampling.forward_seconds(config, args.rounds)
        steps.measure(found, configs, args.batch, args.rounds, peak)
    except RuntimeError as error:  # torch has a kind of its own for the GPU's memory alone
        if "memory" not in str(error):
            raise
        raise ValueError(f"--batch {args.batch}: too much for the memory of this machine") from error
    return peak, drawn


def _table(rows: dict[str, dict[str, Any]], timed: bool, published: bool) -> list[str]:
    times = f"{'time':>8}  [min-max]        step   steps/s  peak  latency" if timed else ""
    lines = [f"{'row':20}{'backbone':>12}{'weights':>12}{'alignment':>13}{'share':>8}{'parameters':>12}{'memory':>11}{'image':>11}{times}"]
    for row, r in rows.items():
        share = 100 * r["alignment_macs"] / r["backbone_macs"]
        line = f"{row:20}{r['backbone_macs'] / 1e9:10.3f} G{r['backbone_parameters'] / 1e6:10.3f} M"
        line += f"{r['alignment_macs'] / 1e9:11.3f} G{share:6.1f} %{r['alignment_parameters'] / 1e6:10.2f} M"
        line += f"{r['activation_bytes'] / 2**20:7.1f} MiB{r['image_bytes'] / 2**20:7.3f} MiB"
        if timed:
            line += f"{r['time']:8.3f}  [{r['low']:.3f}-{r['high']:.3f}] {r['seconds']:8.3f} s {1 / r['seconds']:8.2f} {100 * r['peak']:4.0f} %"
            line += f" {1e3 * r['latency']:6.2f} ms"
        lines.append(line)
        if published and row in paper.ROWS:
            theirs = paper.ROWS[row]
            parameters = "" if theirs.parameters is None else f"{theirs.parameters:.2f} M"
            said = f"{'  the paper':20}{theirs.gmacs:10.3f} G in all{parameters:>38}"
            lines.append(said + (f"{'':32}{theirs.steps:31.2f} {'':6} {theirs.latency:6.2f} ms" if timed else ""))
    return lines


def _sampled(s: sampling.Sampling) -> list[str]:
    one, many = f"{s.sample:.3f} s a sample", f"{s.samples / s.batch:.3f} samples/s in batches of {s.samples}"
    return [
        f"sampling ({s.sampler}, {s.steps} steps, {s.evaluations} evaluations; timed over {sampling.SHORT} steps): {one}, {many}",
        f"VAE, one picture, apart from it: encoder {1e3 * s.encode:.1f} ms, decoder {1e3 * s.decode:.1f} ms",
    ]


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    choose("--size", args.size, (*presets.SIZES, presets.DEMO, *text_presets.TAPS))
    choose("--precision", args.precision, PRECISIONS)
    if args.precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--precision fp16: needs a GPU; choose no or bf16")
    sampling.check(args.sampler)
    rows = chosen("--rows", args.rows, presets.rows_at(args.size))
    configs = {row: resolve(presets.at(row, args.size), {"precision": args.precision, "compile": args.compile}) for row in rows}
    for row, config in configs.items():
        options = alignment_config(config.alignment)
        if options.pictures or options.views > 1:
            raise ValueError(f"--rows {row}: its step runs a teacher on pictures, or several views of an image, which are not counted here")
    found = {row: _counted(config) for row, config in configs.items()}
    peak, drawn = (0.0, None) if args.macs_only else _timed(found, configs, args)
    published = args.size == paper.SIZE
    notes = paper.disagreements(configs[rows[0]].model, found) if published else []
    if args.json:
        told = {"size": args.size, "batch": args.batch, "precision": args.precision, "matmul_peak": peak, "rows": found}
        told |= {"sampling": asdict(drawn) if drawn else None}
        told |= {"paper": {row: asdict(paper.ROWS[row]) for row in rows if published and row in paper.ROWS}, "disagreements": notes}
        print(json.dumps(told, indent=1))
        return 0
    print(
        f"{args.size}, batch {args.batch}, precision {args.precision}, {torch.get_num_threads()} threads"
        + ("" if args.macs_only else f"; time as a ratio to {rows[0]}; one matrix product reaches {peak / 1e12:.2f} TFLOP/s")
    )
    print("\n".join(_table(found, drawn is not None, published)))
    if drawn:
        print("\n".join(_sampled(drawn)))
    if notes:
        print("\n".join(["the paper's table (AHPA, Table I.21) disagrees with this:", *(f"  {note}" for note in notes)]))
    return 0


if __name__ == "__main__":
    commands.run("cost")
