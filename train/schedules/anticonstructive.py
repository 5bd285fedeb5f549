"""Anticonstructive: the mirror of `constructive`, 1 - I+^2 / (I+^2 + SE^2): full weight where the alignment does not descend denoising (ours)."""

from __future__ import annotations

from dataclasses import dataclass

from gsnr.train.schedules._measured import AgreementConfig, AgreementSchedule

EXAMPLE = {"edges": (0.0, 0.5, 1.0), "values": (0.9, 0.1)}


@dataclass(frozen=True, kw_only=True)
class Config(AgreementConfig):
    pass


class Schedule(AgreementSchedule):
    def factor(self, value: float, width: float) -> float:
        return 1 - value
