"""The losses of REPA's and SiT's training loops, one value a sample, and held-out batches for them. Shapes: B samples, T tokens, C channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsnr.batches import Batch
from gsnr.monitor import Monitor

TRUNK, PROJECTOR = "trunk", "projector"
PROJECTORS = ("projectors.", "projector.")  # REPA's heads: they are no part of what is aligned


def _group(name: str) -> str:
    return PROJECTOR if name.startswith(PROJECTORS) else TRUNK


def _bins(rows: Sequence[dict[str, Tensor]], bins: int, seed: int, data_at_one: bool) -> dict[str, list[Batch]]:
    """Bin -> batches with t, noise, x_t and target. A sample has the same noise, and the same place within the bin, in every bin.

    t = 1 is noise: x_t = (1 - t) x + t e, target e - x; with `data_at_one` t = 1 is data, x_t = t x + (1 - t) e, and the target x - e."""
    generator = torch.Generator().manual_seed(seed)
    place, made = 0, []
    for row in rows:
        x = row["x"]
        e = torch.randn(x.shape, generator=generator).to(x)
        u_B = torch.rand(len(x), generator=generator).to(x.device)
        made.append((row | {"index": torch.arange(place, place + len(x), device=x.device)}, e, u_B))
        place += len(x)
    found: dict[str, list[Batch]] = {}
    for k in range(bins):
        own = found[f"t {k / bins:.3g}-{(k + 1) / bins:.3g}"] = []
        for row, e, u_B in made:
            t_B = (k + u_B) / bins
            of_data = (t_B if data_at_one else 1 - t_B).view(-1, *[1] * (e.ndim - 1)).to(e)
            target = row["x"] - e if data_at_one else e - row["x"]
            own.append({key: v for key, v in row.items() if key != "x"} | {"t": t_B, "x_t": of_data * row["x"] + (1 - of_data) * e, "target": target})
    return found


def _velocity(prediction: Tensor, batch: Any) -> Tensor:
    """(B,): mean square over all but the batch, as SiT's and REPA's mean_flat."""
    return (prediction.float() - batch["target"].float()).square().flatten(1).mean(1)


def repa(
    model: nn.Module, batches: Iterable[Sequence[Any]], *, every: int, bins: int = 8, weight: float = 0.5, seed: int = 0, **options: Any
) -> Monitor:
    """For REPA's train.py (Yu et al. 2025): losses "velocity" and "align", their products and rho, by bin of t, of the trunk without projectors.

    model       the raw module (`accelerator.unwrap_model(model)`), not the moving average: model(x_t, t, y=labels) -> (v, [(B,T,C), ...]).
    batches     held-out (x, labels, zs): final latents (B,4,h,w), those times 0.18215; labels (B,) int64; zs, a list of teachers' tokens (B,T,C).
    weight      --proj-coeff, for rho.          seed: of the fixed times and noise.
    options     of `gsnr.Monitor`.

    REPA's SILoss gives the alignment loss as one number a batch; here it is one a sample, minus the mean cosine over tokens, averaged over
    teachers. In eval mode no label is dropped. Raises ValueError as `gsnr.Monitor` does, and for no batches.
    """
    rows = [{"x": x, "y": y} | {f"z{i}": z for i, z in enumerate(zs)} for x, y, zs in batches]

    def outputs(module: nn.Module, batch: Any) -> Any:
        return module(batch["x_t"], batch["t"], y=batch["y"])

    def align(_module: nn.Module, batch: Any, out: Any) -> Tensor:
        each = [-F.cosine_similarity(projected.float(), batch[f"z{i}"].float(), dim=-1).mean(1) for i, projected in enumerate(out[1])]
        return torch.stack(each).mean(0)

    losses = {"velocity": lambda _module, batch, out: _velocity(out[0], batch), "align": align}
    return _monitor(model, losses, rows, outputs, bins, seed, False, every=every, compare=[("align", "velocity")], weight=weight, **options)


def sit(model: nn.Module, batches: Iterable[Sequence[Any]], *, every: int, bins: int = 8, seed: int = 0, **options: Any) -> Monitor:
    """For SiT's train.py (Ma et al. 2024) with linear path and velocity prediction: loss "velocity" by bin of its t, where 1 is data.

    model(x_t, t, y=labels) -> v; batches: held-out (x, labels), as for `repa`. Raises ValueError as `gsnr.Monitor` does, and for no batches.
    """
    rows = [{"x": x, "y": y} for x, y in batches]

    def outputs(module: nn.Module, batch: Any) -> Any:
        return module(batch["x_t"], batch["t"], y=batch["y"])

    losses = {"velocity": lambda _module, batch, out: _velocity(out, batch)}
    return _monitor(model, losses, rows, outputs, bins, seed, True, every=every, **options)


def _monitor(model: nn.Module, losses: Any, rows: Any, outputs: Any, bins: int, seed: int, data_at_one: bool, **options: Any) -> Monitor:
    if not rows or bins < 1:
        raise ValueError("batches: no held-out batch to measure on" if not rows else f"bins = {bins}: must be at least 1")
    held = _bins(rows, bins, seed, data_at_one)
    return Monitor(model, losses, held, common=outputs, groups=_group, group=TRUNK, **({"index": "index"} | options))
