"""What the ways to norms and products cost, in multiply-adds of a large matrix product.

A way is chosen by shapes and these numbers alone, so equal runs take equal ways, bit for bit; another way changes rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Costs:
    """element: squaring and adding up one element of a formed gradient, or multiplying it with a direction's; unfold: making one element of
    a convolution's unfolded input; convolve, convolve_all: a multiply-add of a convolution's weight gradient, of one sample and of many;
    call: what an operation takes before it does anything, where ways differ in how many they need."""

    element: float
    unfold: float
    convolve: float
    convolve_all: float
    call: float


# float32. CPU: one sample's gradient stays in cache; 8 (AVX512, quiet) to 33 (AVX2, five others at work) an element, 20 (quiet) to 110 to unfold one.
CPU = Costs(element=16, unfold=60, convolve=2.4, convolve_all=1.5, call=2e5)
# H200, where forming is memory traffic: 46 an element (widths 768 to 4608); convolutions and calls were not measured apart.
CUDA = Costs(element=46, unfold=46, convolve=1, convolve_all=1, call=0)


def costs_of(x: Tensor) -> Costs:
    """On the device of x."""
    return CUDA if x.is_cuda else CPU
