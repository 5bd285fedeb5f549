"""What a model is given of a batch: the noised latent, and beside it the noised class token, for a model that has one (REG).

Both at the same time, each with its own noise: x_t = (1 - t) x_0 + t eps. Shapes: B samples, latent (C,H,W), class token (E,).
"""

from __future__ import annotations

from torch import Tensor

from gsnr.train.config import CLASS_TOKEN
from gsnr.train.data.batches import Batch
from gsnr.train.interpolant import interpolate, velocity, velocity_loss
from gsnr.train.models.backbone import Backbone
from gsnr.train.models.layers import Velocity


def class_token(batch: Batch) -> Tensor:
    """(B,E) float32, as the teacher gives it."""
    return batch[CLASS_TOKEN].detach().float().flatten(1)


def noised(model: Backbone, batch: Batch, t_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """(x_t, class token at t; None for a model without one). t: default the batch's."""
    t = batch["t"] if t_B is None else t_B
    x_t = interpolate(batch["latent"], batch["noise"], t)
    return x_t, interpolate(class_token(batch), batch["extra_noise"], t) if model.has_extra else None


def losses(predicted: Velocity, batch: Batch) -> dict[str, Tensor]:
    """{"velocity": (B,)}, and "class_token" of a model that has one: mean squared errors, float32, each over its own channels."""
    of_latent, *of_token = predicted if isinstance(predicted, tuple) else (predicted,)
    found = {"velocity": velocity_loss(of_latent, velocity(batch["latent"], batch["noise"]))}
    if of_token:
        found["class_token"] = velocity_loss(of_token[0], velocity(class_token(batch), batch["extra_noise"]))
    return found
