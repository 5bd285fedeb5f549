"""Extractors: images -> the features that metrics take. One file each, found by name (the word of `gsnr evaluate --features`); a file has

class Extractor(FeatureExtractor)      built as Extractor(source, mode), or by Extractor.example(mode)
    .modes                             names of its ways to prepare images, the default first
    .metrics                           what `gsnr evaluate` measures where no --metrics is given
    .gives                             the kinds of its features, of gsnr.train.metrics.KINDS
    .model                             nn.Module, which is moved to the device, frozen and set to eval mode
    .sha                               hash of its weights
    .prepare(images)                   uint8 (B,H,W,3) -> what the model takes, on the CPU
    .forward(prepared)                 {kind: (B,D)}
    .reads_captions                    True where it judges images with their captions: then it is .forward(prepared, captions), and gives "pairs"

source is the word of --weights-file, or None for the extractor's own default. An image's features are its own, whatever is in its batch.
Shapes: B images of (H,W), D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnr.commandline import choose

Images = NDArray[np.uint8]


class FeatureExtractor(ABC):
    """Raises ValueError for an unknown mode, and for weights that are missing, damaged or another network's."""

    modes: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]
    gives: ClassVar[tuple[str, ...]] = ("pool",)
    reads_captions: ClassVar[bool] = False
    model: nn.Module
    sha: str

    def __init__(self, source: str | None, mode: str | None = None) -> None:
        self.mode = self.mode_of(mode)
        self.load(source)

    @classmethod
    def mode_of(cls, mode: str | None) -> str:
        """The mode of that name, or the default. Raises ValueError for another."""
        if mode is not None:
            choose(f"--mode of features {cls.__module__.rpartition('.')[2]}:", mode, cls.modes)
        return mode or cls.modes[0]

    @classmethod
    def example(cls, mode: str | None = None) -> Self:
        """One of random weights, for the contract."""
        made = cls.__new__(cls)
        made.mode = cls.mode_of(mode)
        torch.manual_seed(0)
        made.random()
        return made

    @abstractmethod
    def load(self, source: str | None) -> None:
        """Sets `model` and `sha`."""

    @abstractmethod
    def random(self) -> None:
        """The same with random weights, smaller where the architecture allows."""

    @abstractmethod
    def prepare(self, images_BHWC: Images) -> Tensor: ...

    @abstractmethod
    def forward(self, prepared_B: Tensor) -> dict[str, Tensor]: ...

    @torch.inference_mode()
    def __call__(self, images_BHWC: Images, captions: Sequence[str] = ()) -> dict[str, NDArray[np.float32]]:
        """kind -> (B,D), computed in float32 throughout. captions: one an image, where it reads them. Raises ValueError for features that are not
        finite."""
        given = (captions,) if self.reads_captions else ()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(device).eval().requires_grad_(False)
        prepared_B = self.prepare(images_BHWC).to(device)
        with torch.backends.cudnn.flags(allow_tf32=False), torch.autocast(device, enabled=False):
            found = {kind: x_BD.float().cpu().numpy() for kind, x_BD in self.forward(prepared_B, *given).items()}
        for kind, x_BD in found.items():
            if not np.isfinite(x_BD).all():
                raise ValueError(f"features {type(self).__module__.rpartition('.')[2]}: {kind} are not finite; are the weights damaged?")
        return found
