"""Tiny checkpoints in the formats of other projects, with a model of their own, written from the papers (DiT's blocks, SiT's and REPA's time).

A Reference bears the official names of tensors and nothing of `train`. Shapes: B samples, T tokens, D width.
"""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, SIDE, CHANNELS, CLASSES = 32, 3, 2, 8, 4, 10
MODEL = f"SiT-{DEPTH}x{WIDTH}x{HEADS}/1"


def positions(side: int, width: int) -> Tensor:
    """(side^2, width): for the token in row r and column c, sines and cosines of c, then of r, at wavelengths from 2 pi to 20000 pi."""
    quarter = width // 4
    table = torch.zeros(side * side, width, dtype=torch.float64)
    for token in range(side * side):
        for half, place in enumerate((token % side, token // side)):
            for i in range(quarter):
                angle = place / 10000 ** (i / quarter)
                table[token, half * 2 * quarter + i] = math.sin(angle)
                table[token, half * 2 * quarter + quarter + i] = math.cos(angle)
    return table


def norm(h: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class Reference(nn.Module):
    """outputs: 8 for learn_sigma, where the second four are dropped. forward(x, t, y) -> (the network's output, the state after each block)."""

    def __init__(self, patch: int = 1, outputs: int = CHANNELS, heads: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        side = SIDE // patch
        self.patch, self.outputs = patch, outputs
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(CHANNELS, WIDTH, patch, stride=patch)})
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(CLASSES + 1, WIDTH)})
        self.pos_embed = nn.Parameter(positions(side, WIDTH).float()[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attn": nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)}),
                    "mlp": nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)}),
                    "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH)),
                }
            )
            for _ in range(DEPTH)
        )
        last = {"linear": nn.Linear(WIDTH, patch * patch * outputs), "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))}
        self.final_layer = nn.ModuleDict(last)
        for name, head in (heads or {}).items():
            self.add_module(name, head)
        for p in self.parameters():
            if p.requires_grad and p.numel():
                nn.init.normal_(p, std=0.15)

    def condition(self, t_B: Tensor, y_B: Tensor) -> Tensor:
        frequencies = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
        angles = t_B.double()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.pos_embed.dtype)
        return self.t_embedder["mlp"](waves) + self.y_embedder["embedding_table"](y_B)

    def attend(self, block: nn.ModuleDict, h_BTD: Tensor) -> Tensor:
        q, k, v = (z.unflatten(-1, (HEADS, -1)) for z in block["attn"]["qkv"](h_BTD).chunk(3, dim=-1))
        share = torch.einsum("bthd,bshd->bhts", q, k).div(math.sqrt(WIDTH // HEADS)).softmax(-1)
        return block["attn"]["proj"](torch.einsum("bhts,bshd->bthd", share, v).flatten(2))

    def forward(self, x: Tensor, t_B: Tensor, y_B: Tensor) -> tuple[Tensor, list[Tensor]]:
        side, p = SIDE // self.patch, self.patch
        c = self.condition(t_B, y_B)
        states = self.states(self.x_embedder["proj"](x).flatten(2).mT + self.pos_embed, c)
        cells = self.final_layer["linear"](self.last(states[-1], c))
        out = torch.zeros(len(x), self.outputs, SIDE, SIDE, dtype=x.dtype)
        for token in range(side * side):
            r, s = token // side * p, token % side * p
            out[:, :, r : r + p, s : s + p] = cells[:, token].view(-1, p, p, self.outputs).permute(0, 3, 1, 2)
        return out, states

    def states(self, h: Tensor, c: Tensor) -> list[Tensor]:
        """After each block."""
        states = []
        for block in self.blocks:
            shift1, scale1, gate1, shift2, scale2, gate2 = block["adaLN_modulation"](c)[:, None].chunk(6, dim=-1)
            h = h + gate1 * self.attend(block, norm(h) * (1 + scale1) + shift1)
            inner = block["mlp"]["fc1"](norm(h) * (1 + scale2) + shift2)
            h = h + gate2 * block["mlp"]["fc2"](nn.functional.gelu(inner, approximate="tanh"))
            states.append(h)
        return states

    def last(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.final_layer["adaLN_modulation"](c)[:, None].chunk(2, dim=-1)
        return norm(h) * (1 + scale) + shift


class WithToken(Reference):
    """REG: a class token before the patches. Latents are of patch 1, a token a cell."""

    def __init__(self, channels: int, heads: dict[str, nn.Module] | None = None) -> None:
        super().__init__(heads=heads)
        self.cls_projectors2, self.wg_norm = nn.Linear(channels, WIDTH), nn.LayerNorm(WIDTH)
        self.final_layer["linear_cls"] = nn.Linear(WIDTH, channels)
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, 1, WIDTH), self.pos_embed.data], dim=1), requires_grad=False)
        for part in (self.cls_projectors2, self.wg_norm, self.final_layer["linear_cls"]):
            for p in part.parameters():
                nn.init.normal_(p, std=0.3)

    def both(self, x: Tensor, t_B: Tensor, y_B: Tensor, cls_BE: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(velocity of the latent, of the class token, the state of all tokens after each block)."""
        c = self.condition(t_B, y_B)
        first = norm(cls_BE @ self.cls_projectors2.weight.T + self.cls_projectors2.bias) * self.wg_norm.weight + self.wg_norm.bias
        rows = self.x_embedder["proj"](x).flatten(2).mT
        states = self.states(torch.stack([first, *rows.unbind(1)], dim=1) + self.pos_embed, c)
        h = self.last(states[-1], c)
        cells = self.final_layer["linear"](h)
        out = torch.stack([cells[:, 1 + token] for token in range(SIDE * SIDE)], dim=-1).unflatten(-1, (SIDE, SIDE))
        return out, self.final_layer["linear_cls"](h[:, 0]), states


class Layer(nn.Module):
    """iREPA's wrapper, which puts one more word into the names."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.projection_layer = layer


def mlp(width: int = 24, channels: int = 20) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, channels))


def ap_head() -> nn.Module:
    return nn.ModuleDict({"linear1": nn.Linear(WIDTH, 2 * WIDTH), "linear2": nn.Linear(2 * WIDTH, WIDTH)})


def pair(patch: int = 1, outputs: int = CHANNELS, heads: Any = None) -> tuple[Reference, Reference]:
    """(raw, averaged), which differ; the averaged table of positions has drifted, as a moving average in float32 makes it do."""
    torch.manual_seed(0)
    made = [Reference(patch, outputs, heads() if heads else None) for _ in range(2)]
    made[1].pos_embed.data += 1.5e-4 * torch.randn_like(made[1].pos_embed).clamp(-1, 1)
    return made[0], made[1]


def write(path: Path, raw: Reference, ema: Reference, *, prefix: str = "", steps: int | None = None, **args: Any) -> Path:
    """As the trainers save: dicts of both, the optimizer's state, the parsed command line, and the step where the project keeps it."""
    states = {key: {prefix + name: value for name, value in m.state_dict().items()} for key, m in (("model", raw), ("ema", ema))}
    content = states | {"opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}, "args": Namespace(**args)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | ({} if steps is None else {"steps": steps}), path)
    return path
