"""`gsnr convert`: a checkpoint of SiT, REPA, iREPA, SRA or REG becomes one of ours, the same function of (x, t, y).

    gsnr convert --ckpt SiT-XL-2-256.pt --out converted/sit-xl2
    gsnr convert --ckpt 0150000.pt --from repa-t2i --null-text empty_context.npy --out converted/mmdit       REPA's text to image
    gsnr probe --ckpt converted/sit-xl2 --data CACHE --out tables
    gsnr convert --ckpt RUN --resolution 512 --out start-512        ours or a file: a new start on another token grid (docs/resolution.md)
    gsnr convert --ckpt RUN --to pipeline --out FOLDER              ours or a file: for diffusers (docs/pipeline.md)

docs/convert.md says what each format becomes and what is refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gsnr import files
from gsnr.commandline import Parser, a_path, choose
from gsnr.train.convert import conversion, foreign, resolution, t2i
from gsnr.train.runs import checkpoint


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr convert", __doc__)
    ours = "with --resolution or --to pipeline also a run or checkpoint folder"
    parser.add_argument("--ckpt", type=a_path, required=True, metavar="FILE", help=f"file of torch.save, of which nothing is run; {ours}")
    parser.add_argument("--out", type=a_path, required=True, metavar="DIR", help="checkpoint folder to write")
    parser.add_argument(
        "--from", dest="kind", default="auto", metavar="FORMAT", help=f"auto, {', '.join(foreign.KINDS)} (default: auto, by the tensors)"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="SiT-XL/2, ...: checked; needed for a size that is not published, as SiT-DEPTHxWIDTHxHEADS/PATCH"
    )
    parser.add_argument("--null-text", type=a_path, metavar="FILE", help="of repa-t2i: states of the empty caption, .npy (U-ViT's empty_context.npy)")
    parser.add_number("--resolution", None, "make it a new start for images of that side; of a run or checkpoint of ours too", low=1, high=4096)
    parser.add_argument("--to", default="checkpoint", metavar="KIND", help="checkpoint, or pipeline, for diffusers (default: checkpoint)")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="of a pipeline (default: ema)")
    parser.add_argument("--vae", metavar="ID", help="of a pipeline: its VAE (default: the one the checkpoint names)")
    parser.add_argument("--labels", type=a_path, metavar="FILE", help='of a pipeline: names of classes, JSON {"207": "golden retriever", ...}')
    return parser


def _id2label(path: Path | None) -> dict[int, str] | None:
    if path is None:
        return None
    try:
        found = files.read_json(path)
        return {int(label): str(name) for label, name in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f'--labels {path}: not JSON of the form {{"0": "name", ...}} ({error})') from error


def _to_pipeline(args: argparse.Namespace) -> None:
    from gsnr.train import pipeline

    if args.resolution is not None:
        raise ValueError("--resolution: makes a start for training, which no pipeline can be made of; leave it out")
    checkpoint.check_weights(args.weights)
    source = resolution.source_of(args.ckpt, args.kind, args.model)
    pipeline.save_pipeline(source.open(args.weights), args.out, args.vae, _id2label(args.labels))
    print(f"wrote {args.out}: gsnr.train.pipeline.SiTPipeline.from_pretrained({str(args.out)!r}) reads it")


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    choose("--to", args.to, ("checkpoint", "pipeline"))
    if args.vae == "":
        raise ValueError("--vae '': names nothing; leave it out, or name one")
    if args.null_text is not None and (args.resolution is not None or args.to == "pipeline"):
        raise ValueError("--null-text: convert the file first, and then its folder with --resolution or --to pipeline")
    if args.to == "pipeline":
        _to_pipeline(args)
        return 0
    for name in ("vae", "labels"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name}: of a pipeline alone; add --to pipeline, or leave it out")
    if args.resolution is not None:
        said = resolution.save(resolution.source_of(args.ckpt, args.kind, args.model), args.resolution, args.out)
        print(f"wrote {args.out}: {said}")
        return 0
    if args.ckpt.is_dir():
        raise ValueError(f"--ckpt {args.ckpt}: a folder, which goes with --resolution or --to pipeline; else name a file of torch.save")
    conversion.check_out(args.out)
    found = foreign.read(args.ckpt, args.kind)
    plan = conversion.make_plan(found, args.model, None if args.null_text is None else t2i.null_text(args.null_text))
    print("\n".join(plan.notes))
    conversion.save(found, plan, args.out)
    print(f"wrote {args.out}: {' and '.join(found.states)} weights")
    print(f"measure: gsnr probe --ckpt {args.out} --data CACHE --out {args.out}/probes")
    return 0
