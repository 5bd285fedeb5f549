"""Per-sample gradients of one parameter, in the form an engine has them: whole, or as factors whose products are never formed needlessly.

Every form answers the same questions: square norms, sums, inner products with a direction and with another's gradients. Legend: C
samples, G groups of channels, T tokens (or output pixels), d inputs, p outputs. Norms and products are float64 (C,), accumulated from
at least float32.

    Dense   g_C*                     any gradient, as `loop` and `vmap` have it; biases and affine norms
    Outer   sum_t b_t a_t^T          weights of linear layers, of convolutions once their input is unfolded
    Patches a convolution's, with the input not unfolded
    Rows    b_t to row index_t       embeddings
    Sum     of several of these      a parameter used more than once
    Zero                             a parameter the loss does not touch

Source: the products of Goodfellow (2015, arXiv:1510.01799) for T = 1 and of Li et al. (2022, arXiv:2110.05679, "ghost norm") for T > 1.
"""

from __future__ import annotations

from gsnr.gradients.base import Dense, PerSample, Signs, Zero, wide
from gsnr.gradients.factors import Outer, Rows
from gsnr.gradients.patches import Patches
from gsnr.gradients.sums import Sum, inner

__all__ = ["Dense", "Outer", "Patches", "PerSample", "Rows", "Signs", "Sum", "Zero", "inner", "wide"]
