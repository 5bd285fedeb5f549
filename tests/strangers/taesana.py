"""A stranger's VAE: the encoder of TAESANA (madebyollin/taesd), a plain sequence without posterior, decoder or scaling factor.

--vae taesana:FILE.safetensors, with tensors named by their place in the sequence.
"""

from __future__ import annotations

from safetensors.torch import load_file
from torch import Tensor, nn

from gsnr.train.priors.layers import Layer
from gsnr.train.vaes import FrozenVAE

WIDTH, LATENT = 64, 32
PLACES = {"G1": (4,), "G2": (6, 7, 8), "G3": (10, 11, 12), "G4": (14, 15, 16)}  # of the blocks, at 1/4, 1/8, 1/16, 1/32 of the side


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return (self.conv(x_BCHW) + x_BCHW).relu()


def _stage() -> list[nn.Module]:
    return [nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False), Block(), Block(), Block()]


def _encoder() -> nn.Sequential:
    first = [nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, WIDTH, 3, stride=2, padding=1), nn.ReLU(), Block()]
    return nn.Sequential(*first, *_stage(), *_stage(), *_stage(), nn.Conv2d(WIDTH, LATENT, 3, padding=1))


class VAE(FrozenVAE):
    channels, downsampling = LATENT, 32

    @classmethod
    def open(cls, source: str) -> VAE:
        encoder = _encoder()
        encoder.load_state_dict(load_file(source))
        return cls(encoder)

    @classmethod
    def example(cls) -> VAE:
        return cls(_encoder())

    @property
    def layers(self) -> list[Layer]:
        places = [(place, level, group) for level, (group, some) in enumerate(PLACES.items(), start=2) for place in some]
        return [Layer(number=i, name=str(p), channels=WIDTH, level=level, group=group) for i, (p, level, group) in enumerate(places, start=1)]

    def encode(self, images_BCHW: Tensor) -> tuple[Tensor, None]:
        return self.model((images_BCHW + 1) / 2), None
