"""Alignments: what a hidden state is pulled towards, or made to be. One file each, found by name; a file has

    class Config(AlignmentConfig)          frozen dataclass: its options and their defaults, each with its source
    class Alignment(...)                   built as Alignment(config, model, groups); config.tap is a number by then
    LABEL = "REPA"                         what figures and tables call it (optional; default: its name)

Alignment is an `AlignmentModule` (it has a loss on hidden states: a dispersive loss, say) or a `TargetAlignment` (its loss is a distance of the
projected hidden state to a target: then probes can fit the projector anew, and give it targets of other images).
model: the backbone's ModelConfig; groups: name -> (L,C,g,g) of the feature groups in the cache.
Shapes: B samples, T tokens, D backbone width, C target channels, K mixture weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from accelerate import Accelerator
from torch import Tensor, nn

from gsnr.options import option
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.data.cache import IMAGE, Split
from gsnr.train.models.backbone import Backbone

if TYPE_CHECKING:
    from gsnr.train.teacher_attention import AttentiveTeacher

# What is said where per-sample gradients of a coupled loss are asked for.
COUPLED = "is coupled: a sample's loss reads other samples, and has no gradient of its own; measure independent batches (docs: Extending)"
VIEWS = "reads several (t, noise) views of an image at once, and the probes have single ones; measure it in training, with --gsnr-every"


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """What all alignments have."""

    tap: int | None = option(None, "block whose output is aligned, from 1 (default: the method's own rule, by the depth of the model)")
    weight: float = option(1.0, "factor of the alignment loss beside the velocity loss")

    @property
    def needs(self) -> tuple[str, ...]:
        """The feature groups of the cache that it reads; "teacher" holds those of an image teacher."""
        return ()

    @property
    def pictures(self) -> bool:
        """Whether it reads the cache's pictures, which a teacher sees in the loop: see `AlignmentModule.attach`."""
        return False

    @property
    def scaffold(self) -> int:
        """Steps, the first of training, in which it gives the model keys and values: see `AlignmentModule.replaces`."""
        return 0

    @staticmethod
    def default_tap(depth: int) -> int:
        """The block for a model of this depth. A quarter of it is AHPA's: 3 of B, 6 of L, 7 of XL (Table A.9, Sec. 5.2.1)."""
        return max(1, round(depth / 4))

    def for_depth(self, depth: int) -> Self:
        """Itself with everything filled in that depends on the model's depth."""
        return replace(self, tap=self.default_tap(depth) if self.tap is None else self.tap)

    @property
    def views(self) -> int:
        """(t, noise) views of an image that it reads at once: with more than one, `hidden` has (B,K,T,D), and a sample is an image."""
        return 1

    def over_patches(self) -> Self:
        """Itself without what it reads of an extra token: what probes compare on any backbone."""
        return self

    def target_name(self, name: str) -> str:
        """What tables call the target of a checkpoint that was trained with these options. name: the alignment's."""
        return name

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """What probe `alignment` compares on any backbone: target -> the options that make it; {} where nothing can be compared before it is
        trained. name: the alignment's; own: what the checkpoint was aligned to, whose settings may be shared."""
        return {name: {}}


class AlignmentModule(nn.Module, ABC):
    """What the trainer and the probes call. tap: None for no alignment at all.

    coupled: the loss of a sample reads other samples. Then the mean of `loss` is the loss of the batch; the trainer takes it, and the probes,
    which need per-sample gradients, do not."""

    coupled = False

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config
        self.tap, self.weight, self.needs = config.tap, config.weight, config.needs
        self.views = config.views
        self.columns = (*config.needs, *([IMAGE] if config.pictures else []))  # of the cache, beside latents and labels

    @property
    def name(self) -> str:
        """The name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def parts(self) -> tuple[AlignmentModule, ...]:
        """The single alignments that this one is made of: itself, none, or several."""
        return (self,)

    @property
    def extra_taps(self) -> tuple[int, ...]:
        """Blocks beside the tap whose outputs it reads, of the same forward pass; -k: queries, keys and values of block k."""
        return ()

    @property
    def taps(self) -> tuple[int, ...]:
        """All blocks whose outputs it reads, the taps first."""
        extra = (tap for part in self.parts for tap in part.extra_taps)
        return tuple(dict.fromkeys([*(part.tap for part in self.parts if part.tap is not None), *extra]))

    @abstractmethod
    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        """(B,) float32, one value per sample. hidden: tap -> (B,T,D), of the patches, or (B,K,T,D) of K views; a model's extra token is there as
        `extra_of(tap)`, (B,1,D); -k -> (B,T,3D), see `extra_taps`."""

    def attach(self, teacher: AttentiveTeacher) -> None:
        """Takes the teacher of the cache's pictures, where it reads them, before `prepare` is called. Raises ValueError for one that does not do."""

    def prepare(self, batch: Batch, ema: Backbone) -> Batch:
        """The batch with what the loss reads beside the cache: hidden states of the model's own moving average. Called without gradients."""
        return batch

    def replaces(self, batch: Batch, step: int) -> dict[int, Tensor]:
        """block -> (B,T,2D), keys and values, side by side, that its patches have in this step of training (the first is 1) in place of their own;
        -block then taps these. What the velocity loss trains in them has to stay as it is after step `config.scaffold`. Evaluation, sampling and
        probes ask for none."""
        return {}

    def calibrate(self, train: Split) -> None:
        """Takes constants of the train split (channel means, ...) into buffers, once, before training starts."""

    @property
    def rates(self) -> dict[float, list[nn.Parameter]]:
        """factor on the learning rate -> the parameters that it is for; it is 1 for all others."""
        return {}

    def held(self, step: int) -> list[nn.Parameter]:
        """The parameters that do not learn in this step of training, the first of which is 1."""
        return []

    def guide(self, accelerator: Accelerator, objective: nn.Module, batch: Batch, step: int) -> None:
        """After backward and clipping: gives parameters that are held the gradients of an objective of their own. objective: without its distributed
        wrapper; batch: the last micro-batch, prepared."""

    def router_weights(self, t_B: Tensor) -> dict[str, Tensor]:
        """name -> (B,K) learned mixture weights over t; {} where nothing is learned, or not as a function of t alone."""
        return {}


class TargetAlignment(AlignmentModule):
    """An alignment to a target. projector: the trainable head on the hidden state, which a probe may fit anew."""

    projector: nn.Module

    @abstractmethod
    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        """(B,T,C) alignment target. Gradients flow into a router, never into VAE, teacher or (through the target) hidden state h."""

    def normalised(self, group: str, f_BLCgg: Tensor) -> Tensor:
        """Float32 features of one of the groups that it needs, as the target takes them in, layer by layer; the same shape."""
        return f_BLCgg

    @abstractmethod
    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        """(B,) float32: how far a projected hidden state is from its target, one value per sample."""

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        """The discrepancy of the projected hidden state at the tap from the batch's target."""
        assert self.tap is not None
        h_BTD = hidden[self.tap]
        return self.discrepancy(self.projector(h_BTD), self.target(batch, h_BTD))
