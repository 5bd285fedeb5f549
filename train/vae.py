"""The frozen VAE: loaded by hub id, folder or the name `demo`, and identified by the hash of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import diffusers
from diffusers import AutoencoderKL

from gsnr.train.weights_hash import weights_hash

DEMO_FOLDER = Path(__file__).parent / "demo" / "assets" / "demo_vae"
# SD (sd-vae-ft-mse, -ema) and SDXL are AutoencoderKL with a scaling factor each; openai/consistency-decoder is the other
KINDS = ("AutoencoderKL", "ConsistencyDecoderVAE")


@dataclass(frozen=True, kw_only=True)
class FrozenVAE:
    """name: as asked for; sha: hash of its weights and scaling factor; scale: raw latent -> final latent factor."""

    model: AutoencoderKL  # or another of KINDS
    name: str
    sha: str

    @property
    def scale(self) -> float:
        return float(self.model.config.scaling_factor)

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell, a side."""
        return 2 ** (len(self.model.encoder.down_blocks) - 1)


def load(name: str) -> FrozenVAE:
    """Loads a VAE, float32, eval mode, no gradients. name: "demo", a diffusers folder, or a hub id (stabilityai/sd-vae-ft-mse).

    Raises ValueError naming the VAE where it is missing, damaged or of another kind.
    """
    source = str(DEMO_FOLDER) if name == "demo" else name
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity(diffusers.logging.CRITICAL)  # what it would log is in the error
    try:
        kind = AutoencoderKL.load_config(source).get("_class_name", "AutoencoderKL")
        if kind not in KINDS:
            raise ValueError(f"it is a {kind}, not one of {', '.join(KINDS)}")
        stored, notes = getattr(diffusers, kind).from_pretrained(source, output_loading_info=True)
        lacking = [*notes["missing_keys"], *notes["mismatched_keys"]]
        if lacking:
            raise ValueError(f"its weights lack {lacking[0]}")
    except Exception as error:  # diffusers raises a dozen kinds for a missing, damaged or foreign folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"VAE {name!r} cannot be loaded (name a diffusers AutoencoderKL folder, a hub id or `demo`): {reason}") from error
    finally:
        diffusers.logging.set_verbosity(verbosity)
    model = stored.float().eval().requires_grad_(False)
    return FrozenVAE(model=model, name=name, sha=weights_hash(model, f"scaling_factor {float(model.config.scaling_factor)!r};"))
