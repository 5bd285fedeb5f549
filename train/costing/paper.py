"""Table I.21 of the AHPA paper beside our counts, and where it disagrees with them or with itself. All of SiT-XL/2 at 256 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsnr.train.config import ModelConfig
from gsnr.train.costing.counts import attention_macs

SIZE = "xl2"
PROJECTOR = 9 * 1152 * 1024  # weights of AHPA's 3x3 convolution, 1152 -> 1024


@dataclass(frozen=True, kw_only=True)
class Published:
    """gmacs: its column GFLOPs; parameters: added, in millions, None where not said; steps: a second; latency: ms."""

    gmacs: float
    steps: float
    latency: float
    parameters: float | None = None


ROWS = {
    "sit": Published(gmacs=114.46, steps=8.1, latency=18.05),
    "repa": Published(gmacs=138.50, steps=6.3, latency=22.81),
    "sra": Published(gmacs=197.57, steps=5.1, latency=30.90),
    "sra2": Published(gmacs=118.55, steps=7.2, latency=19.20),
    "ahpa": Published(gmacs=119.85, steps=7.4, latency=19.80, parameters=2.5),
}


def disagreements(model: ModelConfig, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines about the rows that the table has. rows: of `gsnr cost`, with backbone_macs, alignment_macs and alignment_parameters."""
    giga = {name: (row["backbone_macs"] / 1e9, row["alignment_macs"] / 1e9) for name, row in rows.items() if name in ROWS}
    if not giga:
        return []
    plain, backbone, products = ROWS["sit"].gmacs, next(iter(giga.values()))[0], attention_macs(model) / 1e9
    lines = [
        f"sit: {plain} leaves out the products of attention, {products:.2f} G; ours is {backbone:.2f} with and {backbone - products:.2f} without",
        "all: latencies differ by row, but nothing of an alignment runs in a sampler: they can only be of a training forward",
        "all: batch, precision and machine of its steps and latencies are not said",
    ]
    for name, (_, added) in giga.items():
        said = f"{name}: {ROWS[name].gmacs} is {plain} + {ROWS[name].gmacs - plain:.2f} G"
        if name == "ahpa":
            conv, millions = PROJECTOR * model.grid**2 / 1e9, rows[name]["alignment_parameters"] / 1e6
            lines.append(f"{said}; its 3x3 convolution is {conv:.2f} GMACs (ours adds {added:.2f} in all): 2 x {conv:.2f} are FLOPs, added to MACs")
            lines.append(f"{name}: {ROWS[name].parameters} M parameters; the convolution has {PROJECTOR / 1e6:.2f} M (ours {millions:.2f} in all)")
        elif name == "repa":
            lines.append(f"{said}: DINOv2-B runs in its step (about 22 G); here its tokens come from the cache, and the head is {added:.2f} G")
        elif name != "sit":
            lines.append(f"{said}, which is {(ROWS[name].gmacs - plain) / added:.2f} times ours, {added:.2f} G with the products of attention")
    return lines
