"""What a sample costs: the network alone, the sampler around it, and the VAE's encoder and decoder apart.

Nothing of an alignment runs when a model samples, so that one sampling time holds for all rows of a size.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL

from gsnr.benchmarks import clock
from gsnr.train import presets, samplers, vae
from gsnr.train.config import TrainConfig
from gsnr.train.costing.counts import objective_of, synthetic_batch
from gsnr.train.guidance import velocity_of
from gsnr.train.models.backbone import Backbone
from gsnr.train.vaes import FrozenVAE
from gsnr.train.vaes.autoencoder_kl import VAE

SHORT = 4  # steps that are timed; the others are the same
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Seconds. sample: one latent through the whole sampler; batch: `samples` of them together; encode, decode: one picture."""

    sampler: str
    steps: int
    evaluations: int
    sample: float
    samples: int
    batch: float
    encode: float
    decode: float


def vae_of(config: TrainConfig) -> FrozenVAE:
    """The demo's, or one of SD-VAE's architecture with random weights, which takes the same time."""
    if config.data.path.startswith(presets.DEMO):
        return vae.load(presets.DEMO)
    widths = (128, 256, 512, 512)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return VAE(AutoencoderKL(block_out_channels=widths, layers_per_block=2, **blocks))


def median(work: Callable[[], object], rounds: int) -> float:
    """Of the time of a call, the first left out."""
    clock.seconds(work)
    return statistics.median(clock.seconds(work) for _ in range(rounds))


def _device() -> str:
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


@torch.no_grad()
def forward_seconds(config: TrainConfig, rounds: int) -> float:
    """One sample through model and alignment, forward alone: what Table I.21's latencies can be, which differ by row."""
    objective = objective_of(config, "cpu").to(_device()).eval()
    batch = synthetic_batch(config, 1, _device())
    with torch.autocast(_device(), DTYPES[config.precision], enabled=config.precision != "no"):
        return median(lambda: objective(objective.alignment.prepare(batch, objective.model)), rounds)


def _seconds(model: Backbone, config: TrainConfig, sampler: str, samples: int, rounds: int) -> float:
    """Of one evaluation, the sampler's own work included."""
    m, device = config.model, _device()
    latents = torch.randn(samples, m.in_channels, m.input_size, m.input_size, device=device)
    noise: samplers.State = latents if m.extra_token is None else (latents, torch.randn(samples, m.extra_token, device=device))
    of_model = velocity_of(model, model.condition(synthetic_batch(config, samples, device)))

    def velocity(x: samplers.State, t: float) -> samplers.State:
        with torch.autocast(device, DTYPES[config.precision], enabled=config.precision != "no"):
            return of_model(x, t)

    short = samplers.evaluations(sampler, SHORT)
    assert short is not None
    return median(lambda: samplers.integrate(sampler, velocity, noise, SHORT, lambda _: noise), rounds) / short


def check(sampler: str) -> None:
    """Raises ValueError for a sampler that there is not, or whose number of evaluations no one knows."""
    if samplers.evaluations(sampler, SHORT) is None:
        raise ValueError(f"--sampler {sampler}: its solver decides how many evaluations it takes; choose one of fixed steps")


@torch.no_grad()
def sampling(config: TrainConfig, sampler: str, steps: int | None, samples: int, rounds: int) -> Sampling:
    """Over SHORT steps, and as many evaluations as the whole takes. sampler: one that `check` lets pass."""
    evaluations, steps = samplers.evaluations(sampler, steps), steps or samplers.steps_of(sampler)
    assert evaluations is not None and steps is not None
    model = objective_of(config, "cpu").model.to(_device()).eval()
    one, many = (evaluations * _seconds(model, config, sampler, n, rounds) for n in (1, samples))
    frozen = vae_of(config)
    frozen.model.to(_device())
    side = config.model.input_size
    pixels = torch.zeros(1, 3, side * frozen.downsampling, side * frozen.downsampling, device=_device())
    latent = torch.zeros(1, frozen.channels, side, side, device=_device())
    vae_seconds = {"encode": median(lambda: frozen.encode(pixels), rounds), "decode": median(lambda: frozen.decode(latent), rounds)}
    return Sampling(sampler=sampler, steps=steps, evaluations=evaluations, sample=one, samples=samples, batch=many, **vae_seconds)
