"""What the ghost engine is held against: one .backward() a sample, in both precisions."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
from torch import Tensor, nn

import gsnr
from tests.gsnr.problems import naive_gradients

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # the issue's; float32 sums of a few hundred terms are good to about 1e-6


def squares(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A loss through whose gradient every output element of the model matters differently."""
    y = model(batch["x"])
    y = y[0] if isinstance(y, tuple) else y
    weights = torch.linspace(0.5, 1.5, y[0].numel(), dtype=y.dtype).view(y.shape[1:])
    return ((y + y.square()) * weights).flatten(1).sum(1)


def agrees(model: nn.Module, x: Tensor, loss=squares, chunk: int | None = None) -> None:
    """ghost's ||g_i||^2 per parameter, S and r_i equal those of .backward() on one sample at a time, in both precisions."""
    for dtype, tolerance in TOLERANCE.items():
        m = copy.deepcopy(model).double()
        data = {"x": x.double() if x.is_floating_point() else x}
        reference = naive_gradients(m, loss, data)
        total = reference.sum(0)
        m = m.to(dtype)
        data = {"x": x.to(dtype) if x.is_floating_point() else x}
        for memory in (0, 1 << 30):  # a second pass, and kept factors
            with warnings.catch_warnings():  # a parameter whose gradient is the same at all samples has no noise, which float64 is asked about
                warnings.filterwarnings("ignore", "measured again in float64")
                result = gsnr.measure(m, loss, [data], engine="ghost", groups=lambda n: n, chunk=chunk, memory_bytes=memory)
            start = 0
            for name, p in m.named_parameters():
                part = slice(start, start := start + p.numel())
                q, e = (reference[:, part] ** 2).sum(1), result[name]
                least = tolerance * (reference**2).sum(1).max()  # gradients that are zero but for rounding, as a key's bias is
                np.testing.assert_allclose(e.q_n, q, rtol=0, atol=tolerance * max(q.max(), least), err_msg=name)
                np.testing.assert_allclose(
                    result.moments.total(name).double().numpy().ravel(), total[part], rtol=0, atol=tolerance * np.abs(total).max()
                )
                r = reference[:, part] @ total[part]
                np.testing.assert_allclose(e.r_n, r, rtol=0, atol=tolerance * max(np.abs(r).max(), len(x) * least), err_msg=name)
