"""How latents and images come of a checkpoint: everything that their values depend on, but the checkpoint and the VAE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnr import plugins
from gsnr.commandline import choose
from gsnr.surroundings import FLOAT32, TF32, undisturbed
from gsnr.train import samplers
from gsnr.train.data import rng
from gsnr.train.guidance import Guidance, velocity_of
from gsnr.train.sampling.eight_bit import to_uint8
from gsnr.train.sampling.subject import Subject

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
RULES = ("balanced", "random")
DECODED = 16  # images in one pass of the decoder


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """classes: balanced (in turn), random (uniform, from the seed), or some classes, in turn. steps: None where the solver decides. precision: of the
    model's passes, by autocast; the decoder computes in float32. Sample i is a function of (seed, i)."""

    sampler: str
    steps: int | None
    guidance: Guidance
    classes: str | tuple[int, ...]
    uint8: str
    seed: int
    precision: str = "no"
    tf32: bool = False

    def __post_init__(self) -> None:
        choose("--precision", self.precision, PRECISIONS)

    @property
    def together(self) -> int:
        """Samples whose steps are chosen together."""
        found = plugins.constant("samplers", self.sampler, "TOGETHER")
        assert isinstance(found, int)
        return found

    def labels(self, numbers_B: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
        """The class of each sample."""
        if self.classes == "random":
            return rng.integers(self.seed, "label", numbers_B, num_classes)
        return numbers_B % num_classes if self.classes == "balanced" else np.array(self.classes)[numbers_B % len(self.classes)]

    @contextmanager
    def computing(self, model: nn.Module, device: str | torch.device) -> Iterator[None]:
        """Around passes of the model: its precision, whatever is allowed elsewhere."""
        on, dtype = torch.device(device), PRECISIONS[self.precision]
        low = torch.autocast(on.type, dtype=dtype) if dtype is not None else nullcontext()
        with undisturbed(model, on, precision=TF32 if self.tf32 else FLOAT32), low:
            yield

    def conditions(self, subject: Subject, numbers_B: NDArray[np.int64], device: str) -> Tensor:
        """What the model is told of each sample."""
        if subject.prompts is not None:
            return subject.prompts.states(numbers_B).to(device)
        return torch.from_numpy(self.labels(numbers_B, subject.classes)).to(device)

    def about(self) -> dict[str, Any]:
        """For the record."""
        guidance = self.guidance
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance": guidance.weight,
            "guidance_interval": [guidance.low, guidance.high],
            "guided_channels": guidance.channels or "all",
            **({} if (own := guidance.token) is None else {"class_token_guidance": own.weight, "class_token_interval": [own.low, own.high]}),
            "classes": self.classes if isinstance(self.classes, str) else list(self.classes),
            "uint8": self.uint8,
            "seed": self.seed,
            "precision": self.precision,
            "tf32": self.tf32,
        }


@torch.no_grad()
def latents(subject: Subject, recipe: Recipe, numbers_B: NDArray[np.int64], device: str) -> Tensor:
    """Final latents (B,C,h,w) float32 of the samples of these numbers. Where steps are chosen together, whole blocks are solved, so that nothing
    depends on which numbers are asked for. Raises ValueError where they are not finite."""
    size = recipe.together
    wanted = np.unique(numbers_B // size) if size > 1 else None
    solved = numbers_B if wanted is None else (wanted[:, None] * size + np.arange(size)).reshape(-1)
    model = subject.loaded.model
    parts = []
    for rows in np.split(solved, len(solved) // size) if size > 1 else [solved]:
        y = recipe.conditions(subject, rows, device)
        noise = samplers.noise_of(recipe.seed, rows, subject.shape, device, subject.extra)
        with recipe.computing(model, device):
            velocity = velocity_of(model, y, recipe.guidance)
            parts.append(samplers.latents_of(samplers.integrate(recipe.sampler, velocity, noise(0), recipe.steps, noise)).float())
    x = torch.cat(parts)
    if not x.isfinite().all():
        raise ValueError(f"the samples are not finite (sampler {recipe.sampler}, guidance {recipe.guidance.weight}, {recipe.steps} steps)")
    return x[torch.from_numpy(np.searchsorted(solved, numbers_B)).to(device)] if size > 1 else x


@torch.no_grad()
def images(subject: Subject, recipe: Recipe, latents_BCHW: Tensor, first: int) -> NDArray[np.uint8]:
    """(B,H,W,3) of final latents. first: number of the first; a Consistency decoder draws noise, by it and by how many are decoded together."""
    device = latents_BCHW.device
    word = int(rng.integers(recipe.seed, "decode", np.array([first]), 2**62)[0])
    with undisturbed(subject.frozen.model, device, precision=TF32 if recipe.tf32 else FLOAT32):
        torch.manual_seed(word)
        return np.concatenate([to_uint8(subject.frozen.decode(part), recipe.uint8) for part in subject.scaling.raw(latents_BCHW).split(DECODED)])
