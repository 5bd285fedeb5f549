"""Frozen image teachers: what REPA aligns to, and what a Fréchet distance on teacher features is taken on.

A teacher is DINOv2 as REPA uses it (Yu et al. 2024, arXiv:2410.06940), or the demo's own small classifier. DINOv2's class token is what REG denoises
beside the latent; the classifier has none, and where the demo needs one its pooled features, which it classifies by, stand in.

Shapes: B batch, H = W = R image side in pixels, C teacher channels, g tokens a side, T = g^2 tokens. Images in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.utils import cached_file

from gsnr import files
from gsnr.train.models.convnet import ConvNet
from gsnr.train.weights_hash import weights_hash

DEMO_FOLDER = Path(__file__).parent / "demo" / "assets" / "demo_teacher"
DINO = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}  # model_type in config.json: transformers' class
DINO_DOWNSAMPLING = 16  # REPA resizes so that 256 pixels give 16 tokens a side, whatever the patch size
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True, kw_only=True)
class FrozenTeacher:
    """name: as asked for; sha: hash of its weights and, for DINOv2, of the normalisation of images; channels: C; downsampling: an image's pixels
    per token, a side, unless a grid is asked for; patch: the same of what its network sees; tokens(images, that one's side) -> (B,C,g,g); both: the
    same and the class token (B,C); None for a teacher without one."""

    model: nn.Module
    name: str
    sha: str
    channels: int
    downsampling: int
    patch: int
    tokens: Callable[[Tensor, int], Tensor]
    both: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None

    def require_class_token(self, what: str) -> None:
        """Raises ValueError, beginning with `what`, where there is none."""
        if self.both is None:
            raise ValueError(f"{what}: teacher {self.name!r} has no class token; a DINOv2 has one (of `demo` its pooled features stand in)")

    def grid(self, resolution: int) -> int:
        """Tokens a side for images of `resolution` pixels a side. Raises ValueError where that is no whole number."""
        if resolution < 1 or resolution % self.downsampling:
            raise ValueError(f"teacher {self.name!r}: an image side must be a multiple of {self.downsampling} pixels, not {resolution}")
        return resolution // self.downsampling

    @torch.no_grad()
    def features(self, images_BCHW: Tensor, grid: int | None = None) -> Tensor:
        """Images (B,3,R,R) in [-1, 1] -> (B,C,g,g) float32, under autocast too. grid: g, for which its network is given patch x g pixels a side;
        default as `grid` says, and ValueError as there."""
        grid = self.grid(images_BCHW.shape[-1]) if grid is None else grid
        with torch.autocast(images_BCHW.device.type, enabled=False):
            features_BCHW = self.tokens(images_BCHW.float(), grid * self.patch)
        assert features_BCHW.shape[1:] == (self.channels, grid, grid)
        return features_BCHW

    @torch.no_grad()
    def with_class_token(self, images_BCHW: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """(`features`, class token (B,C) float32, as the network gives it), of one pass. Raises ValueError for a teacher without one."""
        self.require_class_token("class token")
        assert self.both is not None
        with torch.autocast(images_BCHW.device.type, enabled=False):
            return self.both(images_BCHW.float(), grid * self.patch)


def _resized(images_BCHW: Tensor, side: int) -> Tensor:
    """Bicubic, without antialiasing."""
    return images_BCHW if images_BCHW.shape[-1] == side else F.interpolate(images_BCHW, size=side, mode="bicubic")


class PatchTokens(nn.Module):
    """DINOv2's patch tokens after the final layer norm (`x_norm_patchtokens`), as a map: (images (B,3,R,R), side) -> (B,C,g,g), side = g x its patch.

    Images are normalised, then resized bicubically without antialiasing, and the position embeddings resampled to the grid with it, as in
    REPA (which does the latter by timm; transformers alone would do it without).
    """

    mean: Tensor
    std: Tensor
    positions: Tensor

    def __init__(self, backbone: Any, patch_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone, self.patch_size = backbone, patch_size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("positions", backbone.embeddings.position_embeddings.detach().float().clone())  # as stored, whatever grid is set

    def set_grid(self, grid: int) -> None:
        """Resamples the stored position embeddings (1, 1 + n^2, C) to a grid of that many tokens a side."""
        first_11C, stored_1nC = self.positions[:, :1], self.positions[:, 1:]
        side = round(stored_1nC.shape[1] ** 0.5)
        map_1Cnn = stored_1nC.transpose(1, 2).unflatten(2, (side, side))
        resized_1Cgg = map_1Cnn if side == grid else F.interpolate(map_1Cnn, size=grid, mode="bicubic", antialias=True)
        embeddings = torch.cat([first_11C, resized_1Cgg.flatten(2).transpose(1, 2)], dim=1)
        self.backbone.embeddings.position_embeddings = nn.Parameter(embeddings, requires_grad=False)

    def forward(self, images_BCHW: Tensor, side: int) -> Tensor:
        return self.both(images_BCHW, side)[0]

    def both(self, images_BCHW: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """(patch tokens as a map, class token (B,C): `x_norm_clstoken`)."""
        grid = side // self.patch_size
        if self.backbone.embeddings.position_embeddings.shape[1] != 1 + grid * grid:
            self.set_grid(grid)
        x_BCHW = _resized(((images_BCHW + 1) / 2 - self.mean) / self.std, side)
        every_BTC = self.backbone(x_BCHW).last_hidden_state  # the class token and the registers come first
        return every_BTC[:, -grid * grid :].transpose(1, 2).unflatten(2, (grid, grid)), every_BTC[:, 0]


@contextmanager
def quiet() -> Iterator[None]:
    """No log and no bar from either library: what they would log is in the error."""
    before = [(library.logging, library.logging.get_verbosity()) for library in (diffusers, transformers)]
    bars = transformers.logging.is_progress_bar_enabled()
    for logging, _ in before:
        logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, verbosity in before:
            logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def _read_json(source: str, file: str, **options: bool) -> dict[str, Any]:
    """A JSON file of a folder or hub id."""
    found = cached_file(source, file, **options)
    return files.read_json(Path(found)) if found else {}


def _stored(source: str) -> dict[str, Any]:
    """Of a folder or hub id: what a FrozenTeacher has beside name and hash. Raises whatever the libraries do."""
    config = _read_json(source, "config.json")
    kind = config.get("model_type") or config.get("_class_name")
    if kind not in (*DINO, ConvNet.__name__):
        raise ValueError(f"its config.json names {kind}, not one of {', '.join(DINO)}, {ConvNet.__name__}")
    cls = getattr(transformers, DINO[kind]) if kind in DINO else ConvNet
    model, notes = cls.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True)
    lacking = sorted([*notes["missing_keys"], *(key for key, *_ in notes["mismatched_keys"])])
    if lacking:
        raise ValueError(f"its weights lack {lacking[0]}, or have it in another shape")
    if isinstance(model, ConvNet):
        pixels = 2 ** len(model.config.widths)
        of_net = {"model": model, "tokens": lambda images_BCHW, side: model(_resized(images_BCHW, side))}
        return of_net | {"channels": model.config.widths[-1], "downsampling": pixels, "patch": pixels}
    norm = IMAGENET | _read_json(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    for key in IMAGENET:
        if len(norm[key]) != 3:
            raise ValueError(f"its preprocessor_config.json has {key} {norm[key]}, not three numbers")
    patch = model.config.patch_size
    dino = PatchTokens(model, patch, norm["image_mean"], norm["image_std"])
    return {"model": dino, "tokens": dino, "both": dino.both, "channels": model.config.hidden_size, "downsampling": DINO_DOWNSAMPLING, "patch": patch}


def _pooled(map_BCgg: Tensor) -> tuple[Tensor, Tensor]:
    """The map, and its mean over the tokens."""
    return map_BCgg, map_BCgg.mean((2, 3))


def load(name: str) -> FrozenTeacher:
    """Loads a teacher, float32, eval mode, no gradients. name: "demo", a folder in the Hugging Face format, or a hub id (facebook/dinov2-base).

    Raises ValueError naming the teacher where it is missing, damaged or of another kind.
    """
    try:
        with quiet():
            found = _stored(str(DEMO_FOLDER) if name == "demo" else name)
    except Exception as error:  # the libraries raise a dozen kinds for a missing, damaged or foreign folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"teacher {name!r} cannot be loaded (name a DINOv2 folder, a hub id or `demo`): {reason}") from error
    model = found["model"].float().eval().requires_grad_(False)
    if name == "demo":
        found["both"] = lambda images_BCHW, side: _pooled(found["tokens"](images_BCHW, side))
    return FrozenTeacher(name=name, sha=weights_hash(model), **found)
