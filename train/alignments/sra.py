"""SRA: an earlier block of the model is pulled towards a later block of its own moving average, which sees less noise (Jiang et al. 2026,
"No Other Representation Component Is Needed"). The loss is the paper's smooth L1. Newer versions of its code default to a cosine, of weight
0.5, whose call takes the axis of tokens, not that of channels: `cos_token_axis`; `cos` is that over channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.models.backbone import Backbone
from gsnr.train.noising import noised
from gsnr.train.projectors import sra

LOSSES = {"smooth_l1": losses.smooth_l1, "cos": losses.cosine, "cos_token_axis": losses.token_axis_cosine}
#         depth: student, teacher block (SRA's B, L and XL)
BLOCKS = {12: (3, 8), 24: (6, 16), 28: (8, 20)}

LABEL = "SRA"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(
        0.2, "factor of the alignment loss beside the velocity loss (SRA's first 150 epochs, --schedule decay afterwards; 0.5 with a cos)"
    )
    loss: str = option("smooth_l1", "distance to the target (cos_token_axis: the default of its code since July 2026)", tuple(LOSSES))
    teacher_tap: int | None = option(None, "block of the moving average (default: 8 of B, 16 of L, 20 of XL, else two thirds of the depth)")
    offset: float = option(0.2, "the teacher's time is t - offset u, u uniform in [0, 1), not below 0")

    @staticmethod
    def default_tap(depth: int) -> int:
        """3 of B, 6 of L, 8 of XL; else a quarter of the depth."""
        return BLOCKS[depth][0] if depth in BLOCKS else max(1, round(depth / 4))

    def for_depth(self, depth: int) -> Config:
        default = BLOCKS[depth][1] if depth in BLOCKS else max(1, round(depth * 2 / 3))
        teacher = default if self.teacher_tap is None else self.teacher_tap
        if not 1 <= teacher <= depth:
            raise ValueError(f"alignment.teacher_tap {teacher}: this model has blocks 1 to {depth}")
        if not 0 <= self.offset <= 1:
            raise ValueError(f"alignment.offset {self.offset}: must be between 0 and 1")
        return replace(super().for_depth(depth), teacher_tap=teacher)


class Alignment(TargetAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        assert config.teacher_tap is not None
        self.teacher_tap, self.offset = config.teacher_tap, config.offset
        self.loss_function = LOSSES[config.loss]
        self.key = f"ema_block_{self.teacher_tap}_offset_{self.offset:g}"  # of the teacher's states in a batch
        self.projector = sra.Projector(model.hidden_size, model.hidden_size, model.grid)

    def prepare(self, batch: Batch, ema: Backbone) -> Batch:
        t_B = (batch["t"] - self.offset * batch["offset_u"]).clamp(0, 1)
        x_t, extra = noised(ema, batch, t_B)
        _, hidden = ema.forward_with_taps(x_t, t_B, ema.condition(batch), batch.get("label_drop"), taps=(self.teacher_tap,), stop=True, extra=extra)
        return batch | {self.key: hidden[self.teacher_tap].float()}

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        return batch[self.key].detach()

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return self.loss_function(projected_BTC, target_BTC)
