"""What a measurement of several alignment targets takes: multiply-accumulates of matrix products, and bytes of the sums.

Legend, per sample: T tokens, F the forward pass of the whole model, F_k that up to the tap, W_k the products that make the weight gradients up to
the tap, P those of one projector. In `gsnr.compare`, by the ghost engine, with everything kept:

    samples            F_k                                  hidden states that targets and their rows of `metrics` are made of
    denoising          F + B + W_k                          forward; gradients down to the first layer; per-sample gradients, summed
    each target        2 P + B_k + W_k + P + G_k            projector, there and back; gradients from the tap down; sums; products with the first's
    second look        (K + 1) W_k + K P                    gradients are formed again, for products with the sums of their own and of others
    64 samples         (K + 1) W_k + K P                    products with D, for tr(Cov^2), where they are few among all

B is F with attention's backward in place of its forward. G_k takes token by token products, T^2 (d + p) a layer. Before, every target took samples,
denoising and its second look for itself, and products with each sum apart (`together=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gsnr.passes import COV_SAMPLES, MANY_TAKEN
from gsnr.train.models.backbone import Backbone
from gsnr.train.models.mmdit import MMDiT
from gsnr.train.parameter_groups import groups_of

ATTENTION_BACKWARD = 2  # products of attention's backward, of those of its forward; flash kernels make the scores once more


@dataclass(frozen=True, kw_only=True)
class Account:
    macs: float
    sums_bytes: int


def text_tokens(model: Backbone) -> int:
    """Places of a text, which attend with the patches; 0 of a model that reads none."""
    return len(model.null_text) if isinstance(model, MMDiT) else 0


def _layers(model: Backbone, blocks: int, whole: bool) -> list[tuple[int, int, int]]:
    """(tokens, inputs, outputs) of the layers up to a block; whole: and of the last one."""
    tokens, text = model.grid**2, text_tokens(model)
    parts: list[tuple[int, Any]] = [(tokens, model.x_embedder.proj), (1, model.t_embedder)]
    parts += [(text, model.context_embedder)] if isinstance(model, MMDiT) else []
    block: Any
    for block in model.blocks[:blocks]:
        for t, stream in [(tokens, block.x), (text, block.context)] if text else [(tokens, block)]:
            parts += [(t, part) for name, part in stream.named_children() if name in ("attn", "mlp")] + [(1, stream.adaLN_modulation)]
    if whole:
        parts += [(tokens, model.final_layer.linear), (1, model.final_layer.adaLN_modulation)]
    found = []
    for t, part in parts:
        weights = [m.weight for m in part.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        found += [(t, w[0].numel(), len(w)) for w in weights]
    return found


def _products(layers: Sequence[tuple[int, int, int]]) -> float:
    return float(sum(t * d * p for t, d, p in layers))


def account(model: Backbone, tap: int, heads: Sequence[nn.Module], samples: int, *, together: bool = True) -> Account:
    """Of one bin. heads: the targets' projectors; samples: images x draws."""
    tokens, depth = model.grid**2, len(model.blocks)
    attending = tokens + text_tokens(model)
    below, count = _layers(model, tap, whole=False), len(heads)
    width = below[0][2]
    attention = 2.0 * attending**2 * width
    forward, weights = (_products(_layers(model, depth, whole=True)) + depth * attention), _products(below)
    backward = forward + depth * (ATTENTION_BACKWARD - 1) * attention
    to_tap, from_tap = weights + tap * attention, weights + tap * ATTENTION_BACKWARD * attention
    head = sum(p.numel() for h in heads for name, p in h.named_parameters() if p.ndim > 1) * tokens / max(1, count)
    met = sum(t**2 * (d + p) for t, d, p in below)
    size = 4 * 2 * sum(p.numel() for name, p in model.named_parameters() if groups_of(name, tap))
    signed = COV_SAMPLES if samples > MANY_TAKEN * COV_SAMPLES else 0  # of fewer, D takes part in the second look
    if together:
        again = (count + 1) * weights + count * head
        macs = to_tap + forward + backward + weights + count * (3 * head + from_tap + weights + met)
        return Account(macs=samples * (macs + again) + signed * again, sums_bytes=(count + 1) * size)
    each = to_tap + to_tap + 3 * head + from_tap + weights + forward + backward + weights + 2 * weights + 4 * weights + 2 * head
    return Account(macs=count * (samples * each + min(samples, COV_SAMPLES) * (2 * weights + head)), sums_bytes=2 * size)
