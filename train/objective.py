"""The training objective: velocity regression plus the weighted alignment loss, one value of each per sample.

    L = mean ||v_theta(x_t, t, y) - (eps - x_0)||^2 + lambda L_align                            (AHPA Sec. 4.4)

A model with a class token has a loss of it too, mean ||v_theta,cls - (eps_cls - cls)||^2, with a weight of its own (REG).
The objective is the module that DDP wraps: it owns the backbone and the alignment (router and projector).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gsnr import plugins
from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import CLASS_TOKEN, MMDIT, ModelConfig, TrainConfig, alignment_config
from gsnr.train.data.batches import Batch, flattened
from gsnr.train.data.cache import TEACHER, Header, flags_for
from gsnr.train.models.backbone import Backbone
from gsnr.train.noising import losses, noised
from gsnr.train.priors.layers import GROUPS

ONE_VECTOR = 1  # the grid of a group that is not of tokens


class Objective(nn.Module):
    """model: the backbone; alignment: see `gsnr.train.alignments`. forward(batch) -> {"velocity": (B,), "align": (B,)} float32, and "class_token" of
    a model that has one, whose loss counts class_token_weight times; of a batch with K views an image, velocity and class_token are (B,K).

    forward(batch, False) is that of a model without alignment, for when its schedule is over; forward(batch, step=s) that of step s of training,
    with the keys and values that the alignment then gives the model."""

    def __init__(self, model: Backbone, alignment: AlignmentModule, class_token_weight: float = TrainConfig.class_token_weight) -> None:
        super().__init__()
        self.model = model
        self.alignment = alignment
        self.class_token_weight = class_token_weight

    @property
    def weights(self) -> dict[str, float]:
        """Factors of the losses beside the velocity's."""
        return {"align": self.alignment.weight, "class_token": self.class_token_weight}

    @property
    def losses(self) -> tuple[str, ...]:
        """Those that it has, by name."""
        return ("velocity", *(["class_token"] if self.model.has_extra else []), *(["align"] if self.alignment.taps else []))

    def forward(self, batch: Batch, aligned: bool = True, step: int | None = None) -> dict[str, Tensor]:
        taps = self.alignment.taps if aligned else ()
        shape, rows = batch["t"].shape, flattened(batch)
        x_t, extra = noised(self.model, rows)
        given = self.alignment.replaces(batch, step) if aligned and step is not None else {}
        told = self.model.condition(rows), rows["label_drop"]
        predicted, hidden = self.model.forward_with_taps(x_t, rows["t"], *told, taps=taps, extra=extra, replaced=given)
        assert predicted is not None
        found = {name: loss.view(shape) for name, loss in losses(predicted, rows).items()}
        if taps:
            found["align"] = self.alignment.loss({k: h.reshape(*shape, *h.shape[1:]) for k, h in hidden.items()}, batch)
            if found["align"].shape != shape[:1]:
                got, wanted = tuple(found["align"].shape), tuple(shape[:1])
                raise ValueError(f"alignment {self.alignment.name!r}: its loss has shape {got}, not {wanted}, one value per sample")
        return found


def make_alignment(options: dict[str, Any], model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> AlignmentModule:
    """The alignment that a resolved configuration names, for a cache with these feature groups.

    Raises ValueError where the cache lacks a group that it reads or has another token grid.
    """
    config, grid = alignment_config(options), model.grid
    for group in config.needs:
        if group not in groups:
            raise ValueError(f"alignment {options['name']!r} reads features of {group}; the cache has {', '.join(groups) or 'none'}")
        one_vector = groups[group][-1] == ONE_VECTOR and group not in (*GROUPS, TEACHER)
        if (found := groups[group][-1]) != grid and not one_vector:
            fits = f" (a teacher of patch 14 then sees {14 * grid} pixels a side)" if group == TEACHER else ""
            raise ValueError(
                f"the cache's features of {group} lie on a grid of {found}x{found} tokens, the model's tokens on {grid}x{grid}: prepare them again "
                f"with its --resolution and --patch{fits}, or take them resized: --data.regrid bilinear"
            )
    return plugins.find("alignments", options["name"]).Alignment(config, model, groups)


def attach_teacher(alignment: AlignmentModule, header: Header) -> None:
    """Gives it the teacher of the cache, where it reads pictures. Raises ValueError where the cache has no pictures, or no teacher that does."""
    if alignment.config.pictures:
        from gsnr.train import teacher_attention  # brings transformers, which takes seconds

        alignment.attach(teacher_attention.of_cache(header))


def _check_text(model: ModelConfig, header: Header) -> None:
    """Raises ValueError where the cache holds no text, or text of another shape."""
    if not header.text_shape:
        raise ValueError(f"{header.data}: holds no captions, which --model.kind {model.kind} reads; prepare it with {flags_for(model.reads)}")
    if header.text_shape != (model.text_tokens, model.text_width):
        tokens, width = header.text_shape
        raise ValueError(f"--model.text-tokens {model.text_tokens}, --model.text-width {model.text_width}: the cache's text has {tokens} and {width}")


def check_cache(model: ModelConfig, header: Header) -> None:
    """Raises ValueError where the model's latents, classes, text or class token are not the cache's."""
    if header.latent_shape != (model.in_channels, model.input_size, model.input_size):
        side, pixels = header.latent_shape[-1], header.resolution
        raise ValueError(
            f"the cache holds latents of shape {header.latent_shape} ({pixels} pixels, {side / model.patch_size:g} tokens a side); the model "
            f"wants {model.in_channels}x{model.input_size}^2 ({pixels * model.input_size / side:g} pixels, {model.grid} tokens a side)"
        )
    if model.text:
        _check_text(model, header)
        return
    if header.num_classes != model.num_classes:
        reads = f"; it holds captions: --model.kind {MMDIT} reads them" if header.text_shape else ""
        raise ValueError(f"the cache has {header.num_classes} classes, the model {model.num_classes} (--model.num-classes){reads}")
    if model.extra_token is None:
        return
    if CLASS_TOKEN not in header.groups:
        raise ValueError(f"{header.data}: holds no class tokens, which --model.extra-token is trained on; prepare it with {flags_for(model.reads)}")
    if (found := header.groups[CLASS_TOKEN][1]) != model.extra_token:
        raise ValueError(f"--model.extra-token {model.extra_token}: the cache's class tokens have {found} channels")
