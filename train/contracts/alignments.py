"""The contract of an alignment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import nn

import gsnr
from gsnr import plugins
from gsnr.engines import Batch
from gsnr.plugins import hold, hold_options
from gsnr.train.alignments import AlignmentConfig, AlignmentModule, TargetAlignment
from gsnr.train.contracts.problem import GROUPS, MODEL, TrainSplit, alike, batch_of, hidden, made, prepared, sit, started, states
from gsnr.train.objective import Objective

STEPS, RATE = 20, 1e-2


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that alignment `name` breaks; what was checked otherwise."""
    module = plugins.find("alignments", name)
    config = module.Config
    hold_options(config, AlignmentConfig, name)
    hold(issubclass(module.Alignment, AlignmentModule), name, "Alignment extends neither AlignmentModule nor TargetAlignment")
    alignment = started(name)
    if not alignment.parts:
        hold(not alignment.taps and not alignment.needs and not list(alignment.parameters()), name, "has no parts, but taps, needs or parameters")
        return ["it is no alignment, and has no parameters"]
    said = [*_loss(name, alignment), *_gradients(name, alignment), *_learns(name, alignment), *_engines(name, alignment)]
    return [*said, *_targets(name, config)]


def _loss(name: str, alignment: AlignmentModule) -> list[str]:
    """Shapes, dtype, determinism, and one sample's loss is its own."""
    hold(all(1 <= abs(tap) <= MODEL.depth for tap in alignment.taps), name, f"taps {alignment.taps} of a model with blocks 1 to {MODEL.depth}")
    hold(set(alignment.needs) <= GROUPS.keys(), name, f"needs {alignment.needs}; a cache has {', '.join(GROUPS)}")
    h, batch = states(alignment), prepared(alignment, batch_of())
    loss = alignment.loss(h, batch)
    hold(loss.shape == (3,) and loss.dtype == torch.float32, name, f"loss of shape {tuple(loss.shape)}, {loss.dtype}; not (B,) in float32")
    hold(bool(torch.isfinite(loss).all()), name, "a loss that is not finite")
    hold(torch.equal(loss, alignment.loss(h, batch)), name, "the same batch has two losses; draw random numbers nowhere, read them from the batch")
    for part in alignment.parts:
        if isinstance(part, TargetAlignment):
            projected, target = part.projector(hidden()), part.target(batch, hidden())
            hold(projected.shape == target.shape, name, f"projected {tuple(projected.shape)} against a target {tuple(target.shape)}")
    mixed = {key: torch.cat([x[:2], batch_of(seed=1)[key][2:]]) for key, x in batch_of().items()}
    changed = alignment.loss({k: torch.cat([x[:2], x[2:] + 1]) for k, x in h.items()}, prepared(alignment, mixed))
    own = alike(changed[:2], loss[:2])
    hold(own or alignment.coupled, name, "a sample's loss depends on the other samples of its batch; say coupled = True if it has to")
    hold(not own or not alignment.coupled, name, "says coupled = True, and a sample's loss is its own")
    hold(not torch.allclose(changed[2], loss[2]), name, "another sample has the same loss")
    said = "coupled" if alignment.coupled else "one sample's is its own"
    return [f"loss: (B,) in float32, finite, a function of the batch, {said}"]


def _gradients(name: str, alignment: AlignmentModule) -> list[str]:
    """They reach h and every trained parameter, and never a prior."""
    batch = prepared(alignment, batch_of())
    leaves = {key: x.float().requires_grad_(True) if x.is_floating_point() else x for key, x in batch.items() if key not in ("t", "offset_u")}
    inputs = {k: x.requires_grad_(True) for k, x in states(alignment).items()}
    alignment.zero_grad()
    loss = alignment.loss(inputs, batch | leaves)
    hold(loss.requires_grad, name, "no gradient reaches the hidden state at the tap")
    sum((kv.sum() for kv in alignment.replaces(batch | leaves, 1).values()), loss.sum()).backward()
    for part in alignment.parts:
        of_part = [inputs[tap].grad for tap in (part.tap, *part.extra_taps) if tap is not None]
        hold(any(g is not None and bool(g.abs().sum() > 0) for g in of_part), name, "no gradient reaches the hidden state at the tap")
    for key in [*alignment.needs, *(key for key in leaves if key.startswith(("ema_", "teacher_")))]:
        hold(leaves[key].grad is None, name, f"a gradient flows into {key!r}; detach what is not trained")
    for parameter, p in alignment.named_parameters():
        reached = p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool(p.grad.abs().sum() > 0)
        hold(reached, name, f"no gradient reaches parameter {parameter!r}")
    return ["gradients: to the hidden state and every parameter, never into VAE, teacher or moving average"]


def _learns(name: str, alignment: AlignmentModule) -> list[str]:
    """A few steps of AdamW lower the loss; a copy that loads its state gives the same loss."""
    h, batch = states(alignment), prepared(alignment, batch_of())
    trained = [] if alignment.replaces(batch, 1) else list(alignment.parameters())  # what gives keys and values learns by the velocity loss
    if trained:
        optimizer = torch.optim.AdamW(trained, lr=RATE)
        first = alignment.loss(h, batch).mean().item()
        for _ in range(STEPS):
            optimizer.zero_grad()
            alignment.loss(h, batch).mean().backward()
            optimizer.step()
        hold(alignment.loss(h, batch).mean().item() < first, name, f"{STEPS} steps of AdamW do not lower the loss")
    again = made(name)
    again.load_state_dict(alignment.state_dict())
    hold(torch.equal(again.loss(h, batch), alignment.loss(h, batch)), name, "a copy that loads its state has another loss")
    return [f"training: {STEPS} steps lower the loss" if trained else "nothing to train", "saving: a copy that loads its state has the same loss"]


def align_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """(B,): the alignment loss of an Objective."""
    return model(batch)["align"]


def per_sample_norms(alignment: AlignmentModule, engine: str) -> Mapping[str, np.ndarray]:
    """parameter -> ||g_i||^2 of a whole objective, as one engine finds them."""
    objective = Objective(sit(), alignment).eval()
    batch = prepared(alignment, batch_of(4)) | {"label_drop": torch.tensor([False, True, False, False])}
    result = gsnr.measure(objective, align_loss, [batch], engine=engine, interval=False, groups=lambda name: name)
    return {group: result[group].q_n for group in result.groups}


def _engines(name: str, alignment: AlignmentModule) -> list[str]:
    """ghost and vmap give each parameter the ||g_i||^2 of the loop, for the whole objective; of a coupled loss there are none."""
    if alignment.coupled:
        return ["gsnr: coupled, so independent batches are the units (docs/extending.md)"]
    norms = partial(per_sample_norms, alignment)
    expected = norms("loop")
    for engine in ("vmap", "ghost"):
        found = norms(engine)
        for group, q_n in expected.items():
            same = np.allclose(found[group], q_n, rtol=1e-3, atol=1e-6 * expected["all"].max())
            hold(same, name, f"engine {engine!r} finds other per-sample gradients of {group!r} than one backward a sample")
    return ["gsnr: engines loop, vmap and ghost agree on its per-sample gradients"]


def _targets(name: str, config: type[AlignmentConfig]) -> list[str]:
    """The targets that probe `alignment` compares are made of options that there are."""
    targets = config.targets(name, MODEL, None)
    for target, options in targets.items():
        alignment = made(name, **options)
        alignment.calibrate(TrainSplit())  # type: ignore[arg-type]
        hold(len(alignment.parts) == 1, name, f"target {target!r} is of several alignments")
    return [f"probe alignment: --targets {','.join(targets)}" if targets else "probe alignment: only as a checkpoint's own target"]
