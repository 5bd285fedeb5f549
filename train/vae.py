"""The frozen VAE: loaded by hub id, folder or the name `demo`, and identified by the hash of its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL

DEMO_FOLDER = Path(__file__).parent / "assets" / "demo_vae"


@dataclass(frozen=True, kw_only=True)
class FrozenVAE:
    """name: as asked for; sha: its identity, see `identity`; scale: raw latent -> final latent factor."""

    model: AutoencoderKL
    name: str
    sha: str

    @property
    def scale(self) -> float:
        return float(self.model.config.scaling_factor)

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell, a side."""
        return 2 ** (len(self.model.config.block_out_channels) - 1)


def identity(model: AutoencoderKL) -> str:
    """SHA-256 over the scaling factor and the names, shapes and bytes of the weights in float32.

    A VAE that was saved again, or as another file, keeps its identity; one with another latent scale does not.
    """
    digest = hashlib.sha256(f"scaling_factor {float(model.config.scaling_factor)!r};".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(name: str) -> FrozenVAE:
    """Loads a VAE, float32, eval mode, no gradients. name: "demo", a diffusers folder, or a hub id (stabilityai/sd-vae-ft-mse).

    Raises ValueError naming the VAE where it is missing, damaged or of another kind.
    """
    source = str(DEMO_FOLDER) if name == "demo" else name
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity(diffusers.logging.CRITICAL)  # what it would log is in the error
    try:
        stored, notes = AutoencoderKL.from_pretrained(source, output_loading_info=True)
        lacking = [*notes["missing_keys"], *notes["mismatched_keys"]]
        if lacking:
            raise ValueError(f"its weights lack {lacking[0]}")
    except Exception as error:  # diffusers raises a dozen kinds for a missing, damaged or foreign folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"VAE {name!r} cannot be loaded (name a diffusers AutoencoderKL folder, a hub id or `demo`): {reason}") from error
    finally:
        diffusers.logging.set_verbosity(verbosity)
    model = stored.float().eval().requires_grad_(False)
    return FrozenVAE(model=model, name=name, sha=identity(model))
