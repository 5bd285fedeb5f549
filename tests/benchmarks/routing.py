"""What diffusion-adaptive routing (DAR) costs: a training step's time and peak memory, as ratios to the plain residual stream's.

    python -m tests.benchmarks.routing                        B/2 shapes, batch 4; static, chunk 4, and dense; fused, and written plainly
    python -m tests.benchmarks.routing --queries dynamic --batch 8 --rounds 5

A step: forward and backward of the velocity loss. Written plainly: sources are stacked for every sublayer, then RMSNorm, product, softmax and sum by
PyTorch's own operators. Ways take turns; medians over rounds, with the least and the greatest. Memory: what autograd keeps for backward, each storage
counted once.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gsnr.benchmarks import clock
from gsnr.train import presets
from gsnr.train.config import resolve
from gsnr.train.models import routing
from gsnr.train.models.sit import SiT


def plainly(q: Tensor, eps: float, *sources: Tensor) -> tuple[Tensor, Tensor]:
    """The same as the fused mixture, by operators."""
    stacked_BTnD = torch.stack(sources, 2)
    keys = stacked_BTnD * stacked_BTnD.square().mean(-1, keepdim=True).add(eps).rsqrt()
    weights_BTn = ((keys * q.unsqueeze(2)).sum(-1) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights_BTn.unsqueeze(-1) * stacked_BTnD).sum(2), weights_BTn


def kept(step: Callable[[], Tensor], model: SiT) -> int:
    """Bytes that autograd keeps, without the weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if (place := x.untyped_storage().data_ptr()) not in own:
            found[place] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = step()
    size = sum(found.values())
    del loss
    return size


def median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}-{max(values):.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.routing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="b2")
    parser.add_argument("--queries", default="static", choices=routing.QUERIES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shape = resolve(presets.at("sit", args.size)).model.options
    models = {"standard": SiT(**shape)}
    for chunk in (4, 0):
        models[f"chunk {chunk}" if chunk else "dense"] = SiT(**shape | {"residual": "dar", "queries": args.queries, "chunk": chunk})
    for model in models.values():
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.02)
    side = shape["input_size"]
    batch = (torch.randn(args.batch, 4, side, side), torch.rand(args.batch), torch.zeros(args.batch, dtype=torch.int64))
    fused = routing._Mixture.apply
    forward = lambda model: model(*batch).square().mean()

    def step(name: str, how: Callable[..., Any]) -> Callable[[], None]:
        def one() -> None:
            routing._Mixture.apply = how  # type: ignore[method-assign]
            models[name].zero_grad(set_to_none=True)
            forward(models[name]).backward()

        return one

    ways = {name: step(name, fused) for name in models} | {f"{name}, plainly": step(name, plainly) for name in models if name != "standard"}
    sizes = {}
    for name, one in ways.items():
        one()
        sizes[name] = kept(lambda name=name: forward(models[name.removesuffix(", plainly")]), models[name.removesuffix(", plainly")])  # type: ignore[misc]
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        plain = clock.seconds(ways["standard"])
        for name, one in ways.items():
            ratios[name].append(clock.seconds(one) / plain)
    for name in ways:
        print(f"{name:20} time {median(ratios[name])}   kept {sizes[name] / sizes['standard']:.2f}", flush=True)


if __name__ == "__main__":
    main()
