"""One forward pass of a SiT, sublayer by sublayer: what each reads and writes, with a place to take gradients at. Plain or routed (DAR).

Sublayers l = 1..L are attention and MLP of each block in turn, L = 2 depth; z_k is what block k leaves: what block k + 1 reads, or the final layer.
Shapes: B samples, T tokens, D hidden size, n sources.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gsnr.train.models.sit import ATTENTION, MLP, SiT


@dataclass(frozen=True)
class Trace:
    """velocity: of the latent. written: v_0 (the token embedding) to v_L. read: what sublayers 1..L read. local: zeros added to these on the way into
    the sublayer alone, so that a gradient there is one through that sublayer. left: z_1 to z_depth. shifts: zeros added to these. weights: (B,T,n)
    of each mixture, of a routed model; of sublayers 1..L and the final layer."""

    velocity: Tensor
    written: list[Tensor]
    read: list[Tensor]
    local: list[Tensor]
    left: list[Tensor]
    shifts: list[Tensor]
    weights: list[Tensor] = field(default_factory=list)


def traced(model: SiT, x_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Trace:
    """Raises ValueError for a model with a class token."""
    if model.has_extra:
        raise ValueError("a model with a class token has another stream beside the patches; it is not traced")
    h_BTD, t_BD = model.x_embedder(x_BCHW) + model.pos_embed, model.t_embedder(t_B)
    c_BD = t_BD + model.y_embedder(y_B, None)
    stream = None if model.routing is None else model.routing.begin(h_BTD, t_BD)
    written, read, local, left, shifts = [h_BTD], list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    if stream is not None:
        stream.weights = []
        h_BTD = stream.read()
    block: Any
    for block in model.blocks:
        modulation_BF = block.adaLN_modulation(c_BD)
        for half in (ATTENTION, MLP):
            read.append(h_BTD)
            local.append(torch.zeros_like(h_BTD, requires_grad=True))
            written.append(block(h_BTD + local[-1], modulation_BF, half))
            if stream is None:
                h_BTD = h_BTD + written[-1]
            else:
                stream.write(written[-1])
                h_BTD = stream.read()
        shifts.append(torch.zeros_like(h_BTD, requires_grad=True))
        h_BTD = h_BTD + shifts[-1]
        left.append(h_BTD)
    out = model.unpatchify(model.final_layer(h_BTD, c_BD))
    return Trace(out, written, read, local, left, shifts, [] if stream is None or stream.weights is None else stream.weights)
