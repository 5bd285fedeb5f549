"""SiT's forward pass without any of its modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reference_forward(
    s: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, heads: int, patch: int, replaced: dict[int, tuple[Tensor, Tensor]] | None = None
) -> Tensor:
    """DiT's forward written out from the paper with matrix products on the state dict: no nn.Module, no SDPA. replaced: keys and values of a block,
    from 1, that are given."""

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def silu(h: Tensor) -> Tensor:
        return h / (1 + torch.exp(-h))

    def norm(h: Tensor) -> Tensor:
        return (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, unbiased=False, keepdim=True) + 1e-6)

    b, c, side, _ = x.shape
    g = side // patch
    patches = x.view(b, c, g, patch, g, patch).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, -1)
    h = patches @ s["x_embedder.proj.weight"].flatten(1).T + s["x_embedder.proj.bias"] + s["pos_embed"]
    frequencies = torch.tensor([math.exp(-math.log(10000) * i / 128) for i in range(128)], dtype=torch.float32)
    angles = (t[:, None].float() * frequencies).to(x.dtype)
    e = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    cond = linear(silu(linear(e, "t_embedder.mlp.0")), "t_embedder.mlp.2") + s["y_embedder.embedding_table.weight"][y]
    depth = 1 + max(int(k.split(".")[1]) for k in s if k.startswith("blocks."))
    for i in range(depth):
        p = f"blocks.{i}"
        sa, ca, ga, sm, cm, gm = linear(silu(cond), f"{p}.adaLN_modulation.1")[:, None].chunk(6, -1)
        q, k, v = linear(norm(h) * (1 + ca) + sa, f"{p}.attn.qkv").chunk(3, -1)
        k, v = (replaced or {}).get(i + 1, (k, v))
        outputs = []
        for n in range(heads):
            w = q.shape[-1] // heads
            qn, kn, vn = (z[..., n * w : (n + 1) * w] for z in (q, k, v))
            outputs.append(torch.softmax(qn @ kn.transpose(1, 2) / math.sqrt(w), -1) @ vn)
        h = h + ga * linear(torch.cat(outputs, -1), f"{p}.attn.proj")
        m = linear(norm(h) * (1 + cm) + sm, f"{p}.mlp.fc1")
        m = 0.5 * m * (1 + torch.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m**3)))
        h = h + gm * linear(m, f"{p}.mlp.fc2")
    shift, scale = linear(silu(cond), "final_layer.adaLN_modulation.1")[:, None].chunk(2, -1)
    out = linear(norm(h) * (1 + scale) + shift, "final_layer.linear")
    return out.view(b, g, g, patch, patch, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, side, side)
