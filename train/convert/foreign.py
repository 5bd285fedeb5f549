"""Checkpoints of other projects, read without running anything that is in them: SiT, REPA (also text to image), iREPA, SRA and REG.

A file is `torch.save`d: a dict with `model` and `ema` (and `opt`, `args`, `steps`), or one flat state dict, which is taken for the averaged
weights, as these projects publish them. Only tensors, plain values and `argparse.Namespace` are unpickled. The format follows from the
tensors' names; depth, width, patch and classes from their shapes. C: latent channels.
"""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from argparse import Namespace
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsnr import checksums
from gsnr.train.config import ModelConfig
from gsnr.train.convert import t2i
from gsnr.train.presets import PUBLISHED, is_model_name, named_model
from gsnr.train.runs.checkpoint import Weights, check_weights

State = dict[str, Tensor]
LONGEST = 10_000  # characters of an option of `args`, or items
LARGEST_PICKLE = 1 << 24  # bytes; names and shapes of a thousand tensors take a hundredth of it
KINDS = ("sit", "repa", "irepa", "sra", "reg", t2i.KIND)
STORED_AS: dict[str, Weights] = {"ema": "ema", "model": "raw"}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds them exactly
HEADS = ("projectors.", "ap_head.")  # what lies beside the backbone
BACKBONE = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight")
LOOKED_FOR = (
    f"{', '.join(BACKBONE)} (all), projectors.K.0 (REPA), projectors.K.projection_layer (iREPA), ap_head.linear1 (SRA), "
    "cls_projectors2, wg_norm, final_layer.linear_cls (REG), joint_blocks.0.x_block (REPA's text to image)"
)
TOKEN = {  # our tensors of the class token: REG's
    f"{ours}.{leaf}": f"{theirs}.{leaf}"
    for ours, theirs in {
        "extra_embedder.proj": "cls_projectors2",
        "extra_embedder.norm": "wg_norm",
        "final_layer.extra": "final_layer.linear_cls",
    }.items()
    for leaf in ("weight", "bias")
}


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A file that was read. kind: one of KINDS; step: of training, 0 where nothing tells; args: what the run was started with, plain
    values, {} where the file does not say; states: its tensors under today's names, heads included."""

    path: Path
    kind: str
    step: int
    args: dict[str, Any]
    states: dict[Weights, State]

    @property
    def tensors(self) -> State:
        """One of its state dicts: for names and shapes."""
        return next(iter(self.states.values()))

    @property
    def head_tensors(self) -> list[str]:
        """Names of the tensors beside the backbone."""
        return [name for name in self.tensors if name.startswith(HEADS)]

    @property
    def run_name(self) -> str:
        """EXPERIMENT of EXPERIMENT/checkpoints/0400000.pt; of a file that lies elsewhere, its own name."""
        parents = self.path.resolve().parents
        return parents[1].name if parents[0].name == "checkpoints" else self.path.stem

    @cached_property
    def sha(self) -> str:
        """SHA-256 of the file, as `sha256sum` prints it."""
        return checksums.sha256(self.path)

    def state(self, weights: Weights) -> State:
        """Raises ValueError for weights that the file does not hold."""
        check_weights(weights)
        if weights not in self.states:
            raise ValueError(f"--weights {weights}: {self.path} holds {next(iter(self.states))} weights alone")
        return self.states[weights]

    @property
    def outputs(self) -> int:
        """Channels that the last layer gives a latent cell: C, or 2C where it learnt a variance too (learn_sigma)."""
        return len(self.tensors["final_layer.linear.weight"]) // self.tensors["x_embedder.proj.weight"].shape[-1] ** 2

    @property
    def size(self) -> tuple[int, int, int]:
        """(depth, width, patch)."""
        embedder = self.tensors["x_embedder.proj.weight"]
        return len(_blocks(self.tensors)), len(embedder), embedder.shape[-1]

    def attention_heads(self, model: str | None) -> int | None:
        """Their number, which no tensor tells: that of the named model, of the one that args name, or of the published size; else None.

        Raises ValueError for a name that is none, and for a model of another depth, width or patch.
        """
        said = str(self.args.get("model")) if model is None else model
        if model is None and not is_model_name(said):
            return next((heads for *size, heads in PUBLISHED.values() if tuple(size) == self.size[:2]), None)
        depth, width, heads, patch = named_model(said)
        if (depth, width, patch) != self.size:
            who = f"--model {said}" if model else f"its args' {said}"
            raise ValueError(f"{self.path}: its (depth, width, patch) are {self.size}, those of {who} {(depth, width, patch)}")
        return heads

    def architecture(self, model: str | None) -> ModelConfig:
        """Raises ValueError where the heads are unknown, or where something is not what our backbone has."""
        if self.kind == t2i.KIND:
            return t2i.architecture(self)
        heads, state = self.attention_heads(model), self.tensors
        depth, width, patch = self.size
        if heads is None:
            raise ValueError(
                f"{self.path}: depth {depth} and width {width} are of no published SiT, and tensors do not tell the heads; "
                f"add --model SiT-{depth}x{width}xHEADS/{patch}"
            )
        classes = len(state["y_embedder.embedding_table.weight"]) - 1
        if self.args.get("num_classes", classes) != classes:
            raise ValueError(
                f"{self.path}: {classes + 1} label embeddings for {self.args['num_classes']} classes; ours has the null class beside them"
            )
        return ModelConfig(
            input_size=math.isqrt(state["pos_embed"].shape[1]) * patch,  # rounds a class token's row away
            patch_size=patch,
            in_channels=state["x_embedder.proj.weight"].shape[1],
            hidden_size=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
            num_classes=classes,
            extra_token=state[TOKEN["extra_embedder.proj.weight"]].shape[1] if self.kind == "reg" else None,
        )


def _check_archive(path: Path) -> None:
    """Raises ValueError for an archive that would unfold to more than its own size, which torch.save never writes."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path}: {entry.filename} in it is compressed, which torch.save does not do; refused, since it may unfold without end")
        if entry.filename.endswith("data.pkl") and entry.file_size > LARGEST_PICKLE:
            raise ValueError(f"{path}: {entry.filename} in it has {entry.file_size} bytes; at most {LARGEST_PICKLE} are read")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(f"{path}: what it says it holds is larger than the file")


def _unpickle(path: Path) -> Any:
    """What the file holds, memory-mapped. Raises ValueError for a file that is none, is damaged, or needs objects that are not allowed."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: truncated, or not a checkpoint of torch.save (a zip archive since PyTorch 1.6)")
    try:
        _check_archive(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on the pickle's protocol, beside the error
        try:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # a damaged or hostile pickle surfaces as one of a dozen kinds
            forbidden = _forbidden(path)
            if forbidden:
                raise ValueError(
                    f"{path}: refused, and nothing in it was run: it needs {', '.join(forbidden)}; only tensors, plain values and argparse.Namespace "
                    "are read. If you trust the file, save its 'model' and 'ema' into a new one"
                ) from error
            raise ValueError(f"{path}: damaged, or not pickled as torch.save does by default; nothing in it was run") from error


def _forbidden(path: Path) -> list[str]:
    """Functions and classes that unpickling would need and that are not allowed; the pickle is disassembled, not run."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it is damaged as well, which the caller says
        return []


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _is_plain(value: Any) -> bool:
    """A short text, a number, or a flat list of these: what a command line holds. Lists in lists may hold one another without end."""
    items = value if isinstance(value, list | tuple) else [value]
    short = lambda x: len(x) <= LONGEST if isinstance(x, str) else not isinstance(x, int) or abs(x) < 2**63
    return len(items) <= LONGEST and all(x is None or (isinstance(x, str | int | float) and short(x)) for x in items)


def _unwrapped(name: str) -> str:
    """A tensor's name without what DistributedDataParallel and torch.compile put before it."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _states(path: Path, content: Any) -> dict[Weights, State]:
    """Raises ValueError naming what the file holds instead."""
    stored: dict[Weights, Any] = {}
    if isinstance(content, dict):
        stored = {weights: content[key] for key, weights in STORED_AS.items() if key in content} or {"ema": content}
    if not stored or not all(map(_is_state, stored.values())):
        have = ", ".join(list(map(str, content))[:6]) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path}: holds no weights where SiT, REPA, iREPA, SRA and REG keep them ('model', 'ema', or tensors alone); it holds {have}"
        )
    return {weights: {_unwrapped(name): tensor for name, tensor in state.items()} for weights, state in stored.items()}


def _blocks(state: State) -> set[str]:
    """Numbers of the blocks, as they are written in the names."""
    return {found[1] for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}


def _renamed(state: State) -> tuple[State, int | None]:
    """Under today's names. REPA's first files split the blocks at the tap: decoder_blocks.j is blocks.(j + tap). Returns the tap too, None for other
    files."""
    state = t2i.renamed(state)
    if not any(name.startswith("decoder_blocks.") for name in state):
        return state, None
    tap = len(_blocks(state))
    return {re.sub(r"^decoder_blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) + tap}", name): x for name, x in state.items()}, tap


def _recognise(path: Path, state: State, args: dict[str, Any]) -> str | None:
    """The format, by the tensors' names; None for a backbone alone, which may be of any of these projects.

    Raises ValueError, saying what was looked for, where nothing fits.
    """
    if t2i.is_one(path, state):
        return t2i.KIND
    token = sorted(name for name in state if name.startswith(("cls_projectors2.", "wg_norm.", "final_layer.linear_cls.")))
    lacking = [name for name in (*BACKBONE, *(TOKEN.values() if token else ())) if name not in state]
    if lacking:
        raise ValueError(f"{path}: no format that is known: lacks {lacking[0]}; looked for {LOOKED_FOR}; it has {', '.join(list(state)[:4])}, ...")
    ndims = {"x_embedder.proj.weight": 4, "pos_embed": 3}
    odd = [name for name in BACKBONE if state[name].ndim != ndims.get(name, 2) or not state[name].numel()]
    if odd or math.isqrt(positions := state["pos_embed"].shape[1] - bool(token)) ** 2 != positions:
        name = odd[0] if odd else "pos_embed"
        raise ValueError(f"{path}: tensor {name!r} has shape {tuple(state[name].shape)}, which no SiT on square latents has")
    if token:
        return "reg"
    if any(re.match(r"projectors\.\d+\.projection_layer\.", name) for name in state):
        return "irepa"
    if any(re.match(r"projectors\.\d+\.\d+\.", name) for name in state):
        return "repa"
    if any(name.startswith("ap_head.linear1.") for name in state):
        return "sra"
    embedder = state["x_embedder.proj.weight"]
    if len(state["final_layer.linear.weight"]) == 2 * embedder[0].numel():
        return "sit"  # learn_sigma, which only SiT has
    # an option that only this project's trainer has
    told_by = {"projection_layer_type": "irepa", "encoder_depth": "repa", "block_out_s": "sra", "image_size": "sit"}
    return next((kind for option, kind in told_by.items() if option in args), None)


def _check(path: Path, kind: str, state: State, args: dict[str, Any]) -> None:
    """Raises ValueError for whatever makes the file another function than our SiT."""
    if any(name.startswith("DiT") for name in (str(args.get("model")), path.name)):
        raise ValueError(f"{path}: a DiT by its name; it has SiT's tensors but predicts the noise at discrete steps, not the velocity")
    if str(args.get("path_type", "linear")).lower() != "linear":
        raise ValueError(f"{path}: trained on the path {args['path_type']!r}; ours is linear, x_t = (1-t) x_0 + t eps")
    if args.get("prediction", "v") not in ("v", "velocity"):
        raise ValueError(f"{path}: predicts {args['prediction']!r}, not the velocity")
    normed = [name for name in state if ".q_norm." in name or ".k_norm." in name]
    if normed:
        raise ValueError(f"{path}: trained with qk_norm ({normed[0]}), which our SiT does not have")
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS or tensor.ndim == 0 or tensor.layout != torch.strided or tensor.device.type != "cpu":
            what = f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}, {tensor.ndim}-dimensional"
            raise ValueError(f"{path}: tensor {name!r} is no array of float32 or half precision ({what})")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: tensor {name!r} of shape {tuple(tensor.shape)} is larger than what the file stores of it")


def _step(path: Path, content: dict[str, Any]) -> int:
    """The file's `steps`; else the number that SiT's, REPA's and SRA's trainers put into its name; else 0."""
    steps = content.get("steps")
    if isinstance(steps, int) and not isinstance(steps, bool) and steps >= 0:
        return steps
    name = re.fullmatch(r"(?:step-)?(\d+)", path.stem)
    return int(name[1]) if name else 0


def read(path: Path, kind: str = "auto") -> Foreign:
    """Raises ValueError for a file that cannot be read, that is not of this kind, or that our SiT cannot hold exactly."""
    if kind not in ("auto", *KINDS):
        raise ValueError(f"--from {kind!r} does not exist; choose from auto, {', '.join(KINDS)}")
    content = _unpickle(path)
    renamed = {weights: _renamed(state) for weights, state in _states(path, content).items()}
    stored = content.get("args")
    options = vars(stored) if isinstance(stored, Namespace) else stored if isinstance(stored, dict) else {}
    args = {key: value for key, value in options.items() if _is_plain(value)}
    found, *others = [_recognise(path, state, args) for state, _ in renamed.values()]
    if others not in ([], [found]):
        raise ValueError(f"{path}: its 'ema' is {found}'s, its 'model' {others[0]}'s")
    state, tap = next(iter(renamed.values()))
    if kind == "auto" and found is None:
        raise ValueError(
            f"{path}: a backbone alone: SiT's (t = 1 is data) and REPA's (t = 1 is noise) look the same; say which to gsnr convert --from"
        )
    if kind != "auto" and found not in (None, kind):
        raise ValueError(f"{path}: --from {kind}, but it is {found}'s by its tensors or args")
    chosen = found or kind
    for one, _ in renamed.values():
        _check(path, chosen, one, args)
    if tap is not None and args.setdefault("encoder_depth", tap) != tap:
        raise ValueError(f"{path}: its args say encoder_depth {args['encoder_depth']}, its decoder_blocks start after block {tap}")
    states = {weights: one for weights, (one, _) in renamed.items()}
    made = Foreign(path=path, kind=chosen, step=_step(path, content), args=args, states=states)
    channels = state["x_embedder.proj.weight"].shape[1]
    if made.outputs not in ((channels, 2 * channels) if chosen == "sit" else (channels,)):
        raise ValueError(f"{path}: {made.outputs} output channels for latents of {channels}, which {chosen}'s models do not have")
    return made
