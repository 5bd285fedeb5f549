"""The layers of a VAE's encoder and the groups G1..G4 they fall into (AHPA, Sec. 4.2). Each kind of VAE (`gsnr.train.vaes`) says its own."""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = ("G1", "G2", "G3", "G4")
MID, DEEP = "mid", "deep"  # the parts of AHPA's target
CACHED = {MID: "G3", DEEP: "G4"}  # the groups that they are cached as, unless a split moves layers between them


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: its number (1-based), its name under `encoder.`, output channels, level (0 = full resolution) and group."""

    number: int
    name: str
    channels: int
    level: int
    group: str
