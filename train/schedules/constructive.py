"""Constructive: full weight where the alignment's gradient surely descends denoising too, I+^2 / (I+^2 + SE^2), none where it does not (ours).

I+ is the unbiased product of both mean gradients, 0 where it is below. RARE's cosine ranks targets in reverse, so this may lose;
`anticonstructive` is its mirror, to tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from gsnr.train.schedules._measured import AgreementConfig, AgreementSchedule

EXAMPLE = {"edges": (0.0, 0.5, 1.0), "values": (0.9, 0.1)}


@dataclass(frozen=True, kw_only=True)
class Config(AgreementConfig):
    pass


class Schedule(AgreementSchedule):
    def factor(self, value: float, width: float) -> float:
        return value
