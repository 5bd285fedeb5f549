"""The configuration of a run: frozen dataclasses, and how a preset, a file and the command line are laid over one another.

Precedence: preset < file < command line. Unknown keys are errors. The resolved configuration is saved with every run.
The options of alignments and schedules live in their own files (`train/alignments/NAME.py`, class Config); here they are mappings that those
validate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gsnr.commandline import no_path
from gsnr.memory import memory_of_process
from gsnr.options import build, check_ranges, option, plugged

DEEPEST, LARGEST, LONGEST = 2**10, 2**20, 10**9  # nobody means a deeper or larger model, or a longer run
CLASS_TOKEN = "teacher_cls"  # the feature group of an image teacher's class token
TEXT = "text"  # the states of a caption, of a model that reads text
MMDIT = "mmdit"
OF_CLASSES = ("num_classes", "residual", "queries", "chunk", "summary", "final", "query_std", "extra_token")  # options of a SiT alone
OF_TEXT = ("text_width", "text_tokens", "init_rule")  # of an MMDiT alone

# section whose options a plug-in declares -> its kind, and the plug-in where none is named
PLUGGED = {
    "alignment": ("alignments", "none"),
    "schedule": ("schedules", "constant"),
    "velocity_schedule": ("schedules", "constant"),
    "stop_rule": ("rules", "none"),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str = option(
        "", "`demo`, `demo-text`, a cache folder made by `gsnr prepare`, or latents prepared by REPA, iREPA or (of COCO, with text) U-ViT"
    )
    vae: str = option("", "the VAE (hub id, folder or `demo`) that must have made the cache; needed with REPA's, iREPA's and U-ViT's latents")
    resampling: str = option(
        "adaptive", "how VAE features reach the token grid (adaptive: paper Sec. 4.2, bilinear: App. A)", ("adaptive", "bilinear")
    )
    regrid: str = option("off", "features on another token grid than the model's: off, an error, or bilinear, resized to it", ("off", "bilinear"))
    control: str = option(
        "none",
        "negative control: the alignment reads features of another image (shuffled; of the same class: shuffled_class), random ones, or the mean",
        ("none", "shuffled", "shuffled_class", "random", "constant"),
    )
    captions: str = option("own", "of a model that reads text: its image's own captions, or those of another image (shuffled)", ("own", "shuffled"))
    heldout: int = option(512, "REPA's and iREPA's latents only (U-ViT's without val): images set aside for probes, at random", low=1, high=2**30)
    latent_stats: str = option(
        "",
        "iREPA's latents: file with latents_scale and latents_bias, or `vae` (default: beside the data); U-ViT's: a factor in place of the VAE's "
        "0.18215, such as 0.23010 of its own runs",
    )
    demo_train: int = option(4096, "demo only: number of training images", low=1, high=LARGEST)
    demo_heldout: int = option(512, "demo only: number of held-out images", low=1, high=512)
    workers: int = option(4, "data processes per rank; 0 loads in place. The batches are the same whatever the number", low=0, high=256)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    kind: str = option("sit", "sit, conditioned on a class, or mmdit, on the text of a caption", ("sit", MMDIT))
    input_size: int = option(32, "latent side", low=1, high=LARGEST)
    patch_size: int = option(2, "latent cells a token, a side", low=1, high=LARGEST)
    in_channels: int = option(4, "latent channels", low=1, high=LARGEST)
    hidden_size: int = option(1152, "width", low=1, high=LARGEST)
    depth: int = option(28, "number of blocks", low=1, high=DEEPEST)
    num_heads: int = option(16, "attention heads", low=1, high=LARGEST)
    mlp_ratio: float = option(4.0, "MLP width over hidden size", low=1, high=LARGEST)
    num_classes: int = option(1000, "classes, the null class not counted", low=1, high=LARGEST)
    residual: str = option("standard", "a sublayer reads the sum of earlier ones, or a mixture (dar, arXiv 2605.20708)", ("standard", "dar"))
    queries: str = option("static", "dar: a query a sublayer, with the time embedding, or of the last output", ("static", "static_t", "dynamic"))
    chunk: int = option(4, "dar: sublayers that later ones read as one source; 0 is dense, none", low=0, high=2 * DEEPEST)
    summary: str = option("last", "dar: of a chunk, its last output (the paper), or their sum (ours)", ("last", "sum"))
    final: str = option("own", "dar: what the final layer reads by (the paper under REPA: reuse)", ("own", "reuse", "summaries"))
    query_std: float = option(0.0, "dar: standard deviation of the initial queries (the paper does not say; 0 is uniform weights)", low=0, high=100)
    extra_token: int | None = option(
        None, "channels of a class token that is denoised beside the latent (REG): those of the cache's teacher (default: none)", low=1, high=LARGEST
    )
    text_width: int = option(768, "mmdit: width of the text encoder's states", low=1, high=LARGEST)
    text_tokens: int = option(77, "mmdit: places of a text, all of which attend", low=1, high=LARGEST)
    init_rule: str = option("default", "mmdit: initial weights, PyTorch's default (REPA's) or DiT's", ("default", "adaln_zero"))

    @property
    def reads(self) -> tuple[str, ...]:
        """What the model itself is trained on of the cache, beside latents and labels: a feature group, or text."""
        return (TEXT,) if self.text else () if self.extra_token is None else (CLASS_TOKEN,)

    @property
    def options(self) -> dict[str, Any]:
        """What its kind of backbone is made with."""
        return {key: value for key, value in asdict(self).items() if key not in ("kind", *(OF_CLASSES if self.text else OF_TEXT))}

    @property
    def text(self) -> bool:
        """Whether it reads captions, not classes."""
        return self.kind == MMDIT

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.input_size // self.patch_size

    @property
    def parameters(self) -> int:
        """Of the matrices, near enough: attention (4 w^2), adaLN (6 w^2) and MLP of each block (an mmdit's: twice), dynamic queries (w^2 a sublayer),
        embeddings."""
        blocks = self.depth * (10 + 2 * self.mlp_ratio) * self.hidden_size**2 * (1 + self.text)
        told = self.text_width if self.text else self.num_classes
        others = told + 2 * self.in_channels * self.patch_size**2 + 3 * self.hidden_size + self.grid**2 + 2 * (self.extra_token or 0)
        routing = (2 * self.depth + 1) * self.hidden_size * (self.residual == "dar") * (self.queries == "dynamic")
        return int(blocks + (others + routing) * self.hidden_size)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float = option(2e-4, "learning rate (AHPA 2e-4, REPA 1e-4)", low=0, high=1e3)
    beta1: float = option(0.9, "AdamW", low=0, below=1)
    beta2: float = option(0.999, "AdamW", low=0, below=1)
    weight_decay: float = option(0.0, "AdamW", low=0, high=1e3)
    clip: float = option(2.0, "largest global gradient norm (AHPA 2.0, REPA 1.0)", low=0, high=1e9)
    warmup: int = option(0, "steps of linear warm-up; constant afterwards", low=0, high=LONGEST)
    ema: float = option(0.9999, "decay of the exponential moving average of the weights", low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    alignment: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    init: str = option("", "checkpoint whose averaged weights a new run starts from, of the alignment too where it is the same (default: afresh)")
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    velocity_schedule: dict[str, Any] = field(default_factory=lambda: {"name": "constant"})
    stop_rule: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    steps: int = option(400_000, "training steps in all", low=1, high=LONGEST)
    batch: int = option(256, "global batch size, over all processes", low=1, high=LARGEST)
    seed: int = option(0, "seed of everything random", low=0)
    class_token_weight: float = option(0.03, "factor of the class token's loss, for a model that has one (REG's 0.03)", low=0, high=1e9)
    label_dropout: float = option(0.1, "share of labels, or captions, replaced by the null class, or the empty caption", low=0, high=1)
    precision: str = option("bf16", "autocast to, or no; losses and norms are in fp32 always", ("no", "bf16", "fp16"))
    accumulate: int = option(1, "micro-batches that a process computes its part of a step in; the step is the whole batch's", low=1, high=LARGEST)
    compile: bool = option(False, "torch.compile the blocks (once for all of them); needs a C++ compiler on a CPU")
    checkpointing: bool = option(False, "compute the blocks' activations again in backward: less memory, about a third more time")
    max_skipped: int = option(
        20, "stop after more than so many steps in a row whose gradient is not finite (skipped and counted)", low=0, high=LONGEST
    )
    log_every: int = option(100, "steps between lines of metrics.jsonl and router.jsonl", low=1, high=LONGEST)
    router_every: int = option(0, "steps between lines of router.jsonl, to see it move; 0: those of log_every", low=0, high=LONGEST)
    save_every: int = option(10_000, "steps between checkpoints", low=1, high=LONGEST)
    keep_last: int = option(0, "checkpoints to keep; 0: all", low=0, high=LONGEST)
    keep_every: int = option(0, "with --keep-last, also keep checkpoints at multiples of this many steps; 0: none", low=0, high=LONGEST)
    sample_every: int = option(0, "steps between grids of samples of the averaged weights, to samples/; 0: never", low=0, high=LONGEST)
    trackers: str = option("tensorboard", "where metrics go beside metrics.jsonl: tensorboard, wandb, both (tensorboard,wandb) or none")
    gsnr_every: int = option(0, "steps between measurements of the gradient signal-to-noise ratio, to gsnr.jsonl; 0: never", low=0, high=LONGEST)
    gsnr_images: int = option(256, "held-out images that gsnr_every measures on", low=3, high=2**30)
    gsnr_bins: int = option(1, "equal bins of t that gsnr_every measures in, all on the same images", low=1, high=64)


def resolve_alignment(values: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Validates an alignment's options against its own Config and fills in its defaults, the tap by the model's depth.

    Raises ValueError for unknown options.
    """
    return {"name": values.get("name", "none")} | asdict(alignment_config(values).for_depth(model.depth))


def alignment_config(values: dict[str, Any]) -> Any:
    """An alignment's options as the Config of its file (an `AlignmentConfig`). Raises ValueError for an unknown name or option."""
    return plugged("alignments", "alignment", values, "none")


def schedule_config(values: Mapping[str, Any], section: str) -> Any:
    """A schedule's options as the Config of its file (a `ScheduleConfig`), resolved. section: of the configuration, for errors.

    Raises ValueError for an unknown name or option, for a value out of its range, and for options that do not go together."""
    return plugged("schedules", section, values, "constant").resolved(section)


def resolve_schedule(values: dict[str, Any], section: str, batch: int) -> dict[str, Any]:
    """Validates a schedule's options against its own Config and fills in its defaults, some by the batch. Raises ValueError, naming the option."""
    return {"name": values.get("name", "constant")} | asdict(schedule_config(values, section).for_batch(batch))


def resolve_rule(values: dict[str, Any]) -> dict[str, Any]:
    """Validates a stop rule's options against its own Config and fills in its defaults. Raises ValueError, naming the option."""
    return {"name": values.get("name", "none")} | asdict(plugged("rules", "stop_rule", values, "none"))


def overlay(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` laid over `base`, section by section. A change of an alignment's or a schedule's name drops the options of the one before."""
    merged = dict(base)
    for key, value in change.items():
        if key in PLUGGED and isinstance(value, dict) and value.get("name", base[key]["name"]) != base[key]["name"]:
            merged[key] = value
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merged[key] | value
        else:
            merged[key] = value
    return merged


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """{"optim.lr": 1} -> {"optim": {"lr": 1}}; a bare "alignment" means its name, and so of schedules."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = (f"{key}.name" if key in PLUGGED else key).rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def resolve(preset: dict[str, Any], *layers: dict[str, Any]) -> TrainConfig:
    """The configuration from a preset and what is laid over it, in order. Raises ValueError for anything out of range."""
    values = overlay(asdict(TrainConfig()), preset)
    for layer in layers:
        values = overlay(values, layer)
    config = build(TrainConfig, values)
    check_ranges(config)
    made = {section: resolve_schedule(getattr(config, section), section, config.batch) for section in ("schedule", "velocity_schedule")}
    config = replace(config, alignment=resolve_alignment(config.alignment, config.model), stop_rule=resolve_rule(config.stop_rule), **made)
    check(config)
    return config


def check_size(model: ModelConfig) -> None:
    """Raises ValueError for a model whose weights alone would not fit the memory of this machine, before any of it is taken."""
    memory = memory_of_process()
    if 4 * model.parameters > memory:
        raise ValueError(
            f"--model.depth {model.depth}, --model.hidden-size {model.hidden_size}: about {model.parameters:.2g} parameters, of 4 bytes each; "
            f"this machine has {memory / 2**30:.0f} GiB"
        )


def _check_routing(model: ModelConfig) -> None:
    """Raises ValueError for options of a routed model in a plain one, and for chunks that do not divide the sublayers."""
    for name in ("queries", "chunk", "summary", "final", "query_std"):
        if model.residual != "dar" and getattr(model, name) != getattr(ModelConfig, name):
            raise ValueError(f"--model.{name.replace('_', '-')} {getattr(model, name)}: is of a routed model; add --model.residual dar")
    if model.residual == "dar" and model.chunk and 2 * model.depth % model.chunk:
        raise ValueError(f"--model.chunk {model.chunk}: {model.depth} blocks have {2 * model.depth} sublayers, which it must divide; 0 is all")


def _check_kind(model: ModelConfig) -> None:
    """Raises ValueError for options of another kind of model."""
    strange, owner = (OF_CLASSES, "sit") if model.text else (OF_TEXT, MMDIT)
    for name in strange:
        if getattr(model, name) != getattr(ModelConfig, name):
            raise ValueError(
                f"--model.{name.replace('_', '-')} {getattr(model, name)}: is of --model.kind {owner}, and this is {model.kind}; leave it out"
            )


def _check_captions(config: TrainConfig) -> None:
    """Raises ValueError for captions of a model that reads none, and for classes of one that reads captions."""
    if config.data.control == "shuffled_class" and config.model.text:
        raise ValueError(f"--data.control shuffled_class: --model.kind {MMDIT} reads captions, which are no classes; choose shuffled")
    if config.data.captions != "own" and not config.model.text:
        raise ValueError(f"--data.captions {config.data.captions}: is of --model.kind {MMDIT}, which reads captions, and this is {config.model.kind}")


def _check_alignment_of_text(config: TrainConfig) -> None:
    """Raises ValueError for an alignment that gives an mmdit what it does not take."""
    if config.model.text and alignment_config(config.alignment).scaffold:
        raise ValueError(f"--alignment {config.alignment['name']}: gives a block keys and values, which --model.kind {MMDIT} does not take")


def check(config: TrainConfig) -> None:
    """Raises ValueError for an option out of its range, and for options that do not go together."""
    check_ranges(config)
    if config.data.path and (wrong := no_path(config.data.path)) is not None:
        raise ValueError(f"--data.path {wrong}")
    for tracker in config.trackers.split(","):
        if tracker not in ("tensorboard", "wandb", "none"):
            raise ValueError(f"--trackers {tracker!r} does not exist; choose from tensorboard, wandb, none, or tensorboard,wandb")
    if "none" in config.trackers.split(",") and config.trackers != "none":
        raise ValueError(f"--trackers {config.trackers}: none goes with no other")
    if config.keep_every and not config.keep_last:
        raise ValueError("--keep-every: says what stays beside --keep-last K, which is missing (all checkpoints stay without it)")
    _check_kind(config.model)
    _check_routing(config.model)
    _check_alignment_of_text(config)
    _check_captions(config)
    if config.batch % config.accumulate:
        raise ValueError(f"--batch {config.batch} is not a multiple of --accumulate {config.accumulate}")
    weight = config.alignment.get("weight", 0.0)
    if not 0 <= weight < float("inf"):
        raise ValueError(f"alignment.weight {weight}: must be a number of at least 0")
    tap = config.alignment.get("tap")
    if tap is not None and not 1 <= tap <= config.model.depth:
        raise ValueError(f"alignment.tap {tap}: this model has blocks 1 to {config.model.depth}")
