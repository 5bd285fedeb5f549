"""VAEs: images -> latents, and features of the encoder's layers. One file each, found by name; a file has

class VAE(FrozenVAE)
    .open(source)              what --vae KIND:SOURCE names: a folder, a file or a hub id
    .example()                 a small one of random weights, for `gsnr check-plugin` and the tests
    .channels, .downsampling   C, and pixels per latent cell, a side
    .layers                    in the order in which they run, numbered from 1; G3 is AHPA's mid group, G4 its deep one
    .encode(images_BCHW)       images in [-1, 1] -> (mean, std), raw, each (B,C,h,w); std is None without a posterior
    .decode(raw_BChw)          -> images in [-1, 1]; left out where there is no decoder
    .scaling                   raw -> final latents; left out where `gsnr prepare` is to measure it
    .settings                  what else tells it from others of the same weights; left out where nothing does
CLASS_NAME = "AutoencoderKL"   the class in config.json of folders and hub ids that need no KIND; left out otherwise

Shapes: B images, (H,W) pixels, (h,w) latent grid, C latent channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from gsnr.train.data.latents import Scaling
from gsnr.train.priors.layers import Layer
from gsnr.train.weights_hash import weights_hash


class FrozenVAE(ABC):
    """A VAE in float32, in eval mode, without gradients. model: all of its weights; sha: hash of them and of `settings`,
    by which caches and checkpoints know it; name: as asked for."""

    name = ""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self.sha = weights_hash(self.model, self.settings)

    @classmethod
    @abstractmethod
    def open(cls, source: str) -> FrozenVAE:
        """Raises whatever says that `source` is missing, damaged or of another kind; `vae.load` makes one line of it."""

    @classmethod
    @abstractmethod
    def example(cls) -> FrozenVAE: ...

    @property
    @abstractmethod
    def channels(self) -> int: ...

    @property
    @abstractmethod
    def downsampling(self) -> int: ...

    @property
    @abstractmethod
    def layers(self) -> list[Layer]:
        """Their names are those of modules under `encoder`, whose outputs (B,channels,.,.) are the features."""

    @abstractmethod
    def encode(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]: ...

    def decode(self, raw_BChw: Tensor) -> Tensor:
        raise ValueError(f"VAE {self.name!r}: has no decoder")

    @property
    def encoder(self) -> nn.Module:
        return self.model

    @property
    def scaling(self) -> Scaling | None:
        return None

    @property
    def settings(self) -> str:
        return ""

    @property
    def decodes(self) -> bool:
        return type(self).decode is not FrozenVAE.decode

    def require_decoder(self, flag: str) -> None:
        """Raises ValueError, naming what asks for pictures, where there is no decoder."""
        if not self.decodes:
            raise ValueError(f"{flag}: VAE {self.name!r} has no decoder; its latents cannot be made pictures")
