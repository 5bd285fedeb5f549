"""Features of a frozen teacher, averaged over its tokens: of a cache's images, and of samples. What `gsnr evaluate --frechet` compares.

The Fréchet distance in them is not the FID: the network is another one. Shapes: N images, F features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from gsnr.train import sample, samplers
from gsnr.train import teacher as teachers
from gsnr.train import vae as vaes
from gsnr.train.data.cache import TEACHER, Header, Split
from gsnr.train.guidance import velocity_of
from gsnr.train.priors.features import to_pixels
from gsnr.train.runs import checkpoint
from gsnr.train.sampling import prompts

Features = NDArray[np.float64]
CHUNK = 256


def cached_features(split: Split) -> Features:
    """(N,F): the teacher's features of a split's images, from the cache."""
    parts = []
    for start in range(0, split.size, CHUNK):
        index = np.arange(start, min(start + CHUNK, split.size), dtype=np.int64)
        parts.append(split.take(index, (TEACHER,))[TEACHER][:, 0].astype(np.float64).mean(axis=(2, 3)))
    return np.concatenate(parts)


@torch.no_grad()
def sampled_features(loaded: checkpoint.Checkpoint, header: Header, heldout: Split, images: int, steps: int, seed: int) -> Features:
    """(N,F): features, by the cache's teacher, of samples: classes in turn, or held-out captions, no guidance, `steps` Heun steps; a function of
    (weights, seed)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frozen, teacher = vaes.load(header.vae), teachers.load(header.teacher)
    if (frozen.sha, teacher.sha) != (header.vae_sha, header.teacher_sha):
        raise ValueError(f"{loaded.folder}: VAE {frozen.name!r} or teacher {teacher.name!r} is not the one its data were made with")
    model = loaded.model.to(device)
    frozen.model.to(device)
    teacher.model.to(device)
    scaling = checkpoint.decoding(loaded)
    noise = torch.randn(images, *header.latent_shape, generator=torch.Generator().manual_seed(seed))
    extra, texts = loaded.config.model.extra_token, prompts.of_split(heldout) if loaded.config.model.text else None
    parts = []
    for start in tqdm(range(0, images, CHUNK), desc="sampling for the Fréchet distance", unit=f"x{CHUNK}", leave=False, mininterval=1.0):
        rows = slice(start, start + CHUNK)
        numbers = np.arange(images, dtype=np.int64)[rows]
        y = (torch.from_numpy(numbers % header.num_classes) if texts is None else texts.states(numbers)).to(device)
        drawn: samplers.State = noise[rows].to(device)
        if extra is not None:
            drawn = noise[rows].to(device), samplers.noise_of(seed, numbers, header.latent_shape, device, extra)(0)[1]
        final = samplers.integrate("heun", velocity_of(model, y), drawn, steps)
        pixels = to_pixels(sample.decode(frozen, samplers.latents_of(final), scaling, seed)).to(device)
        parts += [teacher.features(part).mean(dim=(2, 3)).double().cpu().numpy() for part in pixels.split(32)]
    return np.concatenate(parts)
