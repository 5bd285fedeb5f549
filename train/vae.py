"""Loads the frozen VAE that --vae names."""

from __future__ import annotations

import warnings
from pathlib import Path

import diffusers
from diffusers.configuration_utils import ConfigMixin

from gsnr import plugins
from gsnr.train.vaes import FrozenVAE

DEMO_FOLDER = Path(__file__).parent / "demo" / "assets" / "demo_vae"


class _Stored(ConfigMixin):
    """Reads a config.json. The classes of VAEs, which take two seconds to import, are imported by the plug-in that needs one."""

    config_name = "config.json"


def _kind_and_source(name: str) -> tuple[str, str]:
    """Raises ValueError for a kind that there is not, and whatever diffusers raises for what is no folder or hub id."""
    kinds = plugins.names("vaes")
    kind, colon, source = name.partition(":")
    if not Path(name).exists() and (colon or name in kinds):
        if kind not in kinds:
            raise plugins.missing("--vae KIND:SOURCE: kind", kind, kinds)
        return kind, source
    folder = str(DEMO_FOLDER) if name == "demo" else name
    wanted = _Stored.load_config(folder).get("_class_name", "AutoencoderKL")
    classes = {plugins.constant("vaes", kind, "CLASS_NAME"): kind for kind in kinds}
    if wanted not in classes:
        raise ValueError(f"it is a {wanted}, not one of {', '.join(sorted(str(c) for c in classes if c))}")
    return classes[wanted], folder


def load(name: str) -> FrozenVAE:
    """A VAE, float32, eval mode, no gradients. name: "demo", a diffusers folder or hub id (stabilityai/sd-vae-ft-mse), whose config.json says the
    kind, or KIND:SOURCE (`gsnr.train.vaes`).

    Raises ValueError naming the VAE where it is missing, damaged or of another kind.
    """
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity(diffusers.logging.CRITICAL)  # what it would log is in the error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="huggingface_hub")  # of arguments that diffusers gives it
            kind, source = _kind_and_source(name)
            found: FrozenVAE = plugins.find("vaes", kind).VAE.open(source)
    except plugins.Missing:
        raise
    except Exception as error:  # diffusers raises a dozen kinds for a missing, damaged or foreign folder, and so may a plug-in
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"VAE {name!r} cannot be loaded (name a folder or hub id of diffusers, `demo`, or KIND:SOURCE): {reason}") from error
    finally:
        diffusers.logging.set_verbosity(verbosity)
    found.name = name
    return found
