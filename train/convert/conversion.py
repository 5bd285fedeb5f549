"""A checkpoint of SiT, REPA, iREPA, SRA or REG becomes one of ours, the same function of (x, t, y), and of the class token, for REG.

In SiT t = 1 is data, so v(x, t) = -v_SiT(x, 1-t). With the embedding e(t) = [cos ft, sin ft], e(1-t) = R e(t), where R is, per frequency f,
[[cos f, sin f], [sin f, -cos f]]; W R in place of the first weight W of the time embedder and the negated last layer make that exact.
D: hidden size, F: frequencies, E = 2F: embedding of t, P: patch, C: latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsnr import files
from gsnr.train.config import CLASS_TOKEN, ModelConfig, TrainConfig, resolve
from gsnr.train.convert import t2i
from gsnr.train.convert.foreign import HEADS, KINDS, TOKEN, Foreign, State
from gsnr.train.models.build import build
from gsnr.train.models.layers import position_table, timestep_frequencies
from gsnr.train.objective import make_alignment
from gsnr.train.projectors import repa
from gsnr.train.runs import checkpoint
from gsnr.train.runs import state as states
from gsnr.train.runs.checkpoint import Weights

LATENT_SCALE = {**dict.fromkeys(KINDS, 0.18215), "irepa": None}  # iREPA: by statistics of each channel
TIME = {"sit": "t = 1 is data in it: reversed", **dict.fromkeys(KINDS[1:], "t = 1 is noise")}
POSITION_TOLERANCE = 1e-3  # a moving average (decay 0.9999) over the fixed table drifts by up to 2e-4 in float32: the table is averaged too


@dataclass(frozen=True, kw_only=True)
class Head:
    """The alignment that a file's head belongs to. tensors: our name -> the file's; target_channels: of an image teacher, None without one;
    notes: what a reader should know."""

    options: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    tensors: dict[str, str] = field(default_factory=dict)
    target_channels: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a file becomes. groups: shapes of the features that the alignment reads; null_text: (L,C), of a model that reads text."""

    config: TrainConfig
    groups: Mapping[str, tuple[int, ...]]
    head: Head
    notes: tuple[str, ...]
    null_text: Tensor | None = None


def reverse_time(w_DE: Tensor) -> Tensor:
    """W R, float32: gives of the embedding of t what W gives of that of 1-t. Its own inverse, since R R = 1. Computed in float64."""
    f_F = timestep_frequencies().double()
    cosine_DF, sine_DF = w_DE.double().chunk(2, dim=1)
    return torch.cat([cosine_DF * f_F.cos() + sine_DF * f_F.sin(), cosine_DF * f_F.sin() - sine_DF * f_F.cos()], dim=1).float()


def velocity_rows(rows: Tensor, patch: int, channels: int) -> Tensor:
    """(P*P*kC, ...) of the last layer -> (P*P*C, ...): the first C channels of each latent cell, which are the velocity."""
    return rows.unflatten(0, (patch * patch, -1))[:, :channels].flatten(0, 1)


def backbone(found: Foreign, weights: Weights, model: ModelConfig) -> State:
    """Our SiT's tensors. Raises ValueError where the table of positions is not the sinusoids of MAE and DiT."""
    ours = {theirs: name for name, theirs in TOKEN.items()}
    state = {ours.get(name, name): tensor for name, tensor in found.state(weights).items() if not name.startswith(HEADS)}
    table = position_table(model.grid, model.hidden_size, model.extra_token is not None)
    off = float((state["pos_embed"].float() - table).abs().max()) if state["pos_embed"].shape == table.shape else float("inf")
    if not off <= POSITION_TOLERANCE + torch.finfo(state["pos_embed"].dtype).eps:
        raise ValueError(f"{found.path}: its pos_embed is not the sinusoidal table of a {model.grid}x{model.grid} grid (off by {off:.2g})")
    if found.kind == "sit":
        frequencies = 2 * len(timestep_frequencies())
        if state["t_embedder.mlp.0.weight"].shape[1:] != (frequencies,) or len(state["final_layer.linear.weight"]) % (model.patch_size**2):
            raise ValueError(f"{found.path}: its t_embedder.mlp.0 or final_layer.linear has a shape that no SiT of {frequencies} sinusoids has")
        state["t_embedder.mlp.0.weight"] = reverse_time(state["t_embedder.mlp.0.weight"])
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            state[name] = -velocity_rows(state[name].float(), model.patch_size, model.in_channels)
    return state


def _layers(ours: dict[str, str]) -> dict[str, str]:
    """our layer -> theirs, as our tensor -> theirs."""
    return {f"{name}.{leaf}": f"{theirs}.{leaf}" for name, theirs in ours.items() for leaf in ("weight", "bias")}


def _mlp(prefix: str) -> dict[str, str]:
    return _layers({f"projector.mlp.{i}": f"{prefix}.{i}" for i in (0, 2, 4)})


def _without(reason: str) -> Head:
    return Head(notes=(f"its head is left behind, alignment none: {reason}",))


def _head(
    found: Foreign, known: dict[str, Any], tensors: dict[str, str], options: dict[str, str], checked: tuple[str, ...] = (), last: str | None = None
) -> Head:
    """known: our options; options: of the run's args, theirs -> ours; checked: those that decided that the head is ours. last: the head's last
    layer, where a teacher's channels tell."""
    known |= {ours: found.args[theirs] for theirs, ours in options.items() if theirs in found.args}
    untold = [name for name in (*options, *checked) if name not in found.args]
    notes = [f"it does not tell {', '.join(untold)}; the defaults of our {known['name']} are taken"] if untold else []
    channels = None
    if last is not None:
        channels = len(found.tensors[f"{last}.weight"])
        notes.append(f"aligned to {channels} channels of the teacher {found.args.get('enc_type', '(not named)')}; the cache has to hold that one's")
    return Head(options=known, tensors=tensors, target_channels=channels, notes=tuple(notes))


def _repa(found: Foreign, prefix: str = "projectors.0", **known: Any) -> Head:
    """PREFIX.{0,2,4}: d -> width -> width -> channels of the teacher. known: options beside the width."""
    tensors = _mlp(prefix)
    if set(tensors.values()) != set(found.head_tensors):
        return _without(f"REPA's is one MLP of three layers, this is {', '.join(found.head_tensors[:6])}, ...")
    width, channels = (len(found.tensors[f"{prefix}.{i}.weight"]) for i in (0, 4))
    if not channels:
        return _without("trained without a teacher")
    options = {"encoder_depth": "tap", "proj_coeff": "weight"}
    return _head(found, {"name": "repa", "projector_width": width} | known, tensors, options, last=f"{prefix}.4")


def _reg(found: Foreign) -> Head:
    """REPA's, over the class token and the patches; one of another width than the token's channels is of another teacher."""
    head, channels = _repa(found, class_token=True), found.tensors[TOKEN["extra_embedder.proj.weight"]].shape[1]
    if head.target_channels not in (None, channels):
        return _without(f"aligned to {head.target_channels} channels, the class token has {channels}")
    return head


def _irepa(found: Foreign) -> Head:
    """projectors.0.projection_layer: a convolution or a linear layer, or REPA's MLP; the target normalised over its tokens, or not."""
    args, prefix = found.args, "projectors.0.projection_layer"
    if args.get("projection_loss_type", "cosine") != "cosine" or args.get("zscore_proj_skip_std"):
        return _without("trained with another loss than cosine, or with zscore_proj_skip_std")
    mlp, normalised = _mlp(prefix), args.get("spnorm_method", "zscore")
    if set(found.head_tensors) == set(mlp.values()):
        if normalised == "none":
            return _repa(found, prefix)
        projector = "repa" if len(found.tensors[f"{prefix}.0.weight"]) == repa.WIDTH else None
        tensors, last = mlp, f"{prefix}.4"
    elif set(found.head_tensors) == {f"{prefix}.weight", f"{prefix}.bias"}:
        projector = {(): "linear", (1, 1): "conv1x1", (3, 3): "conv3x3"}.get(tuple(found.tensors[f"{prefix}.weight"].shape[2:]))
        tensors, last = _layers({"projector.mlp.0" if projector == "linear" else "projector.conv.0": prefix}), prefix
    else:
        return _without(f"iREPA's is one projection_layer, this is {', '.join(found.head_tensors[:6])}, ...")
    if projector is None or normalised != "zscore":
        shape = tuple(found.tensors[f"{last}.weight"].shape)
        return _without(
            f"a last layer of shape {shape} with spnorm_method {normalised}; conv 1x1, 3x3, linear, MLP of {repa.WIDTH} with zscore are read"
        )
    options = {"encoder_depth": "tap", "proj_coeff": "weight", "zscore_alpha": "gamma"}
    return _head(found, {"name": "irepa", "projector": projector}, tensors, options, ("spnorm_method",), last)


def _sra(found: Foreign) -> Head:
    """ap_head.linear1, linear2: d -> 2d -> d, on the student."""
    tensors = _layers({"projector.mlp.0": "ap_head.linear1", "projector.mlp.2": "ap_head.linear2"})
    if set(tensors.values()) != set(found.head_tensors):
        return _without(f"SRA's is linear1 and linear2, this is {', '.join(found.head_tensors[:6])}, ...")
    if found.args.get("loss_type", "sml1") != "sml1":
        return _without(f"trained with loss_type {found.args['loss_type']}; the paper's, and ours, is smooth L1 (sml1)")
    return _head(found, {"name": "sra"}, tensors, {"block_out_s": "tap", "block_out_t": "teacher_tap", "t_max": "offset"}, ("loss_type",))


READ_HEAD: dict[str, Callable[[Foreign], Head]] = {"repa": _repa, "irepa": _irepa, "sra": _sra, "reg": _reg, t2i.KIND: _repa}


def _with_text(found: Foreign, config: ModelConfig, null_text: Tensor | None) -> ModelConfig:
    """With as many text places as the empty caption has. Raises ValueError where that is missing, or does not belong to the model."""
    if (null_text is not None) != config.text:
        reads = "reads text: name the empty caption's states, U-ViT's empty_context.npy" if config.text else "reads no text; leave it out"
        raise ValueError(f"--null-text: {found.path} {reads} (gsnr convert --null-text FILE.npy)")
    if null_text is None:
        return config
    if null_text.shape[1] != config.text_width:
        raise ValueError(f"--null-text: states of {null_text.shape[1]} channels; {found.path} reads {config.text_width}")
    return replace(config, text_tokens=len(null_text))


def make_plan(found: Foreign, model: str | None = None, null_text: Tensor | None = None) -> Plan:
    """model: its name, needed where its size is not published; null_text: (L,C), of a model that reads text.

    Raises ValueError where it cannot be one of ours."""
    config = _with_text(found, found.architecture(model), null_text)
    head = READ_HEAD[found.kind](found) if found.head_tensors else Head()
    groups = {} if head.target_channels is None else {"teacher": (1, head.target_channels, config.grid, config.grid)}
    groups |= {} if config.extra_token is None else {CLASS_TOKEN: (1, config.extra_token, 1, 1)}
    try:
        resolved = resolve({"model": asdict(config), "alignment": head.options, "steps": max(1, found.step)})
    except ValueError as error:
        raise ValueError(f"{found.path}: its args do not fit its tensors: {error}") from error
    tap = f" at block {resolved.alignment['tap']}" if head.tensors else ""
    read_as = f"{found.path}: read as {found.kind} ({TIME[found.kind]}); step {found.step}, alignment {resolved.alignment['name']}{tap}"
    caution = ("nothing in it tells SiT from DiT, whose tensors have the same names and shapes",) if found.kind == "sit" and not found.args else ()
    notes = (read_as, *(f"{found.path.name}: {note}" for note in (*caution, *head.notes)))
    return Plan(config=resolved, groups=groups, head=head, notes=notes, null_text=null_text)


def load(found: Foreign, plan: Plan, weights: Weights) -> checkpoint.Checkpoint:
    """The file as a checkpoint, without a folder of its own. Raises ValueError naming the first tensor that does not fit."""
    config, state = plan.config, found.state(weights)
    lacking = [name for name in plan.head.tensors.values() if name not in state]
    if lacking:
        raise ValueError(f"{found.path}: its {weights} weights lack tensor {lacking[0]!r}")
    tensors = backbone(found, weights, config.model) | ({} if plan.null_text is None else {"null_text": plan.null_text})
    model, alignment = build(config.model), make_alignment(config.alignment, config.model, plan.groups)
    checkpoint.assign(model, tensors, found.path)
    checkpoint.assign(alignment, {ours: state[theirs] for ours, theirs in plan.head.tensors.items()}, found.path)
    return checkpoint.Checkpoint(
        folder=found.path,
        run_folder=None,
        run_name=found.run_name,
        step=found.step,
        weights=weights,
        sha=found.sha,
        config=config,
        header=None,
        groups=plan.groups,
        latent_scale=LATENT_SCALE[found.kind],
        model=model.eval(),
        alignment=alignment.eval(),
    )


def check_out(out: Path) -> None:
    """Raises ValueError where `out` exists or cannot be written."""
    if out.exists():
        raise ValueError(f"--out {out}: exists; name a new folder")
    files.check_writable(out, "--out")


def save(found: Foreign, plan: Plan, out: Path) -> None:
    """Writes a checkpoint folder, whole or not at all. Raises ValueError where `out` exists, OSError naming it where it cannot be written."""
    check_out(out)
    taps: tuple[int, ...] = ()
    with files.making(out) as aside:
        for weights in found.states:
            made = load(found, plan, weights)
            taps = made.alignment.taps
            checkpoint.write_weights(aside, weights, made.model, made.alignment)
        origin = {"from": found.kind, "file": str(found.path), "sha256": found.sha, "args": found.args}
        state = states.describe(found.step, plan.config, taps, LATENT_SCALE[found.kind])
        checkpoint.write_state(aside, state | {"cache": None, "groups": plan.groups, "converted": origin})
