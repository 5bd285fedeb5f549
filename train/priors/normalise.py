"""Normalisations of VAE features after resampling, before they are mixed. The paper mentions none; raw layers differ in scale and mean, and a
layer with a large mean is an easy cosine target.

    none          as they are
    centre        per layer and channel, less the train split's mean over images and tokens: its constant part is gone, its scale is not (ours)
    rms           per layer, over the root mean square of all its values in the train split: its scale is gone, its constant part is not (ours)
    standardise   per layer and channel, by the train split's mean and standard deviation over images and tokens
    spatial       per sample, layer and channel, over its tokens (iREPA, Singh et al. 2025): (f - gamma mean) / (std + 1e-6), gamma = 0.6

Shapes: B samples, L layers, C channels, (g,g) token grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gsnr.train.data.cache import Split

GAMMA = 0.6  # iREPA
SPATIAL_EPSILON = 1e-6  # iREPA


def spatial(f_BLCgg: Tensor, gamma: float = GAMMA) -> Tensor:
    """(f - gamma mean) / (std + 1e-6), mean and (unbiased) standard deviation over the tokens of one sample."""
    tokens = f_BLCgg.flatten(-2)
    mean, std = tokens.mean(-1, keepdim=True), tokens.std(-1, keepdim=True)
    return ((tokens - gamma * mean) / (std + SPATIAL_EPSILON)).view_as(f_BLCgg)


class Normaliser(nn.Module, ABC):
    """normaliser(group, f_BLCgg) -> the same shape."""

    @abstractmethod
    def forward(self, group: str, f_BLCgg: Tensor) -> Tensor: ...

    def calibrate(self, train: Split) -> None:
        """Takes what it needs of the train split."""


class Raw(Normaliser):
    def forward(self, group: str, f_BLCgg: Tensor) -> Tensor:
        return f_BLCgg


class Spatial(Normaliser):
    def forward(self, group: str, f_BLCgg: Tensor) -> Tensor:
        return spatial(f_BLCgg)


class _PerChannel(Normaliser):
    """Its buffers GROUP_STATISTIC, (L,C), of the train split lie in the checkpoint."""

    statistics: tuple[str, ...]

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for group, shape in shapes.items():
            for which in self.statistics:
                self.register_buffer(f"{group}_{which}", torch.full(shape, torch.nan))

    def calibrate(self, train: Split) -> None:
        found = train.statistics()
        for name, buffer in self.named_buffers():
            buffer.copy_(torch.from_numpy(found[name]))


class Centre(_PerChannel):
    statistics = ("mean",)

    def forward(self, group: str, f_BLCgg: Tensor) -> Tensor:
        return f_BLCgg - getattr(self, f"{group}_mean")[..., None, None]


class RootMeanSquare(Normaliser):
    """Its buffers GROUP_rms, (L,), lie in the checkpoint. A layer that is 0 in all of the train split stays 0."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for group, (layers, _) in shapes.items():
            self.register_buffer(f"{group}_rms", torch.full((layers,), torch.nan))

    def calibrate(self, train: Split) -> None:
        statistics = train.statistics()
        for name, buffer in self.named_buffers():
            mean_LC, std_LC = (torch.from_numpy(statistics[f"{name.removesuffix('_rms')}_{which}"]) for which in ("mean", "std"))
            buffer.copy_((mean_LC.square() + std_LC.square()).mean(1).sqrt())

    def forward(self, group: str, f_BLCgg: Tensor) -> Tensor:
        rms = getattr(self, f"{group}_rms")[:, None, None, None]
        return torch.where(rms == 0, 0, f_BLCgg / rms)


class Standardise(_PerChannel):
    """A channel that never varies in the train split becomes 0."""

    statistics = ("mean", "std")

    def forward(self, group: str, f_BLCgg: Tensor) -> Tensor:
        mean, std = (getattr(self, f"{group}_{which}")[..., None, None] for which in self.statistics)
        return torch.where(std == 0, 0, (f_BLCgg - mean) / std)


NORMALISATIONS = ("none", "standardise", "spatial", "centre", "rms")


def make(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Normaliser:
    """shapes: group -> (L,C). Raises ValueError listing the valid names."""
    if name not in NORMALISATIONS:
        raise ValueError(f"alignment.features {name!r} does not exist; choose from {', '.join(NORMALISATIONS)}")
    if name in ("none", "spatial"):
        return Spatial() if name == "spatial" else Raw()
    return Centre(shapes) if name == "centre" else RootMeanSquare(shapes) if name == "rms" else Standardise(shapes)
