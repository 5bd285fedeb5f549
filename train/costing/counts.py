"""Multiply-accumulates of a forward pass, and the objective and batch that they are counted on; nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode

from gsnr.train.config import CLASS_TOKEN, TEXT, ModelConfig, TrainConfig, alignment_config
from gsnr.train.data.batches import Batch
from gsnr.train.data.cache import TEACHER
from gsnr.train.models.build import build
from gsnr.train.models.sit import extra_of
from gsnr.train.noising import noised
from gsnr.train.objective import ONE_VECTOR, Objective, make_alignment

#            layers, channels: SD-VAE's groups, DINOv2-B's tokens, a vector of Qwen2-VL-7B; and the demo's
FULL_GROUPS = {"G1": (4, 128), "G2": (3, 256), "G3": (4, 512), "G4": (4, 512), TEACHER: (1, 768), "vlm": (1, 3584)}
DEMO_GROUPS = {"G1": (4, 16), "G2": (3, 32), "G3": (4, 64), "G4": (4, 64), TEACHER: (1, 128)}


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Of one forward pass of one sample."""

    backbone: int
    alignment: int


def objective_of(config: TrainConfig, device: str) -> Objective:
    """Freshly initialised on a device ("meta" allocates nothing)."""
    groups = groups_of(config)
    with torch.device(device):
        objective = Objective(build(config.model), make_alignment(config.alignment, config.model, groups))
    return objective.to(device) if device != "cpu" else objective  # the position table is made by numpy


def groups_of(config: TrainConfig) -> dict[str, tuple[int, ...]]:
    shapes = DEMO_GROUPS if config.data.path.startswith("demo") else FULL_GROUPS
    grids = {name: ONE_VECTOR if name == "vlm" else config.model.grid for name in shapes}
    maps: dict[str, tuple[int, ...]] = {name: (*shape, grids[name], grids[name]) for name, shape in shapes.items()}
    return maps | ({} if config.model.extra_token is None else {CLASS_TOKEN: (1, config.model.extra_token, 1, 1)})


def synthetic_batch(config: TrainConfig, samples: int, device: str) -> Batch:
    """What a cache would give, at random."""
    m: ModelConfig = config.model
    with torch.device(device):
        batch = {name: torch.randn(samples, *shape).half() for name, shape in groups_of(config).items()}
        batch |= {name: torch.randn(samples, m.in_channels, m.input_size, m.input_size) for name in ("latent", "noise")}
        batch |= {name: torch.rand(samples) for name in ("t", "offset_u")}
        labels = torch.randint(1 if m.text else m.num_classes, (samples,))
        batch |= {TEXT: torch.randn(samples, m.text_tokens, m.text_width)} if m.text else {}
        batch |= {} if m.extra_token is None else {"extra_noise": torch.randn(samples, m.extra_token)}
    return batch | {"label": labels, "label_drop": torch.zeros_like(labels, dtype=torch.bool)}


def _count(work: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops() // 2


def macs(config: TrainConfig) -> Macs:
    """Counted on the meta device."""
    objective, batch = objective_of(config, "meta"), synthetic_batch(config, 1, "meta")
    model, alignment = objective.model, objective.alignment
    tokens = {tap: config.model.grid**2 for tap in alignment.taps} | {extra_of(tap): 1 for tap in alignment.taps}
    hidden = {key: torch.empty(1, count, config.model.hidden_size, device="meta") for key, count in tokens.items()}
    x_t, extra = noised(model, batch)

    def aligned() -> None:
        alignment.loss(hidden, alignment.prepare(batch, model))

    backbone = _count(lambda: model(x_t, batch["t"], model.condition(batch), batch["label_drop"], extra=extra))
    routing = 0 if model.routing is None else model.routing.macs(model.pos_embed.shape[-2])  # no matrix product, so not counted above
    return Macs(
        backbone=backbone + routing,
        alignment=_count(aligned) if alignment.taps else 0,
    )


def bytes_of_an_image(config: TrainConfig) -> int:
    """What a step reads of it from a cache of float16: its latent's moments in float32, and the groups that alignment and model need."""
    m, groups = config.model, groups_of(config)
    read = dict.fromkeys((*alignment_config(config.alignment).needs, *m.reads))
    text = 2 * m.text_tokens * m.text_width if m.text else 0
    return 2 * 4 * m.in_channels * m.input_size**2 + text + sum(2 * prod(groups[name]) for name in read if name != TEXT)


def attention_macs(model: ModelConfig) -> int:
    """Of the products of queries with keys and of weights with values, in all blocks: what the published counts of SiT and DiT leave out."""
    together = model.grid**2 + (model.text_tokens if model.text else 0)
    return 2 * together**2 * model.hidden_size * model.depth
