"""Images -> rows of the cache, one VAE pass a batch and view; and the demo's own cache, built where it is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gsnr.train.config import CLASS_TOKEN
from gsnr.train.data import cache, quantise, statistics
from gsnr.train.data.cache import TEACHER
from gsnr.train.data.latents import Scaling
from gsnr.train.priors import features, layers
from gsnr.train.priors.features import to_pixels
from gsnr.train.vaes import FrozenVAE

if TYPE_CHECKING:
    from gsnr.train.prepare.captions import Captions
    from gsnr.train.teacher import FrozenTeacher


class Encoder:
    """Batches of images -> rows of a cache, as its header says, and the sums of their features; those of the latents too, if measured."""

    def __init__(
        self,
        vae: FrozenVAE,
        header: cache.Header,
        device: str,
        teacher: FrozenTeacher | None = None,
        measured: bool = False,
        captions: Captions | None = None,
    ) -> None:
        self.vae, self.header, self.device, self.teacher, self.measured, self.captions = vae, header, device, teacher, measured, captions
        self.chosen = [layer for layer in vae.layers if layer.group in header.groups]
        self.grid = next(iter(header.groups.values()))[-1] if header.groups else 0
        vae.model.to(device)
        if teacher is not None:
            teacher.model.to(device)
        if captions is not None:
            captions.encoder.model.to(device)

    def __call__(
        self, images_NHWC: NDArray[np.uint8], numbers_N: NDArray[np.int64], labels_N: NDArray[np.int64]
    ) -> tuple[cache.Rows, statistics.Sums]:
        """numbers: the images', for image_id. Raises ValueError naming features that exceed float16."""
        views = self.header.views
        pixels = to_pixels(images_NHWC).to(self.device)
        by_view = [self._view(pixels.flip(-1) if view else pixels, numbers_N) for view in range(views)]
        if self.header.dtype == cache.ONLINE:
            for view, (its_rows, _) in enumerate(by_view):
                its_rows[cache.IMAGE] = images_NHWC[:, :, ::-1] if view else images_NHWC
        rows = {name: np.stack([r[name] for r, _ in by_view], axis=1).reshape(-1, *x.shape[1:]) for name, x in by_view[0][0].items()}
        rows |= {"image_id": np.repeat(numbers_N, views), "label": np.repeat(labels_N, views)}
        rows |= {} if self.captions is None else self.captions.rows(numbers_N)
        rows["view"] = np.tile(np.arange(views, dtype=np.int8), len(numbers_N))
        sums: statistics.Sums = {}
        for _, its_sums in by_view:
            sums = statistics.add(sums, its_sums)
        return rows, sums

    def _view(self, pixels: torch.Tensor, numbers_N: NDArray[np.int64]) -> tuple[cache.Rows, statistics.Sums]:
        mean, std, by_group = features.encode(self.vae, pixels, self.chosen, self.grid, self.header.resampling)
        by_group = {group: f.mean(1, keepdim=True) if self.header.groups[group][0] == 1 else f for group, f in by_group.items()}
        if self.teacher is not None:
            by_group |= self._of_teacher(self.teacher, pixels)
        rows: cache.Rows = {"mean": mean.cpu().numpy(), "std": std.cpu().numpy()}
        sums = {statistics.LATENT: statistics.latent_sums(mean, std)} if self.measured else {}
        for group, f in by_group.items():
            stored = f.half()
            if not torch.isfinite(stored).all():
                raise ValueError(
                    f"features of {group} exceed float16 in images {numbers_N[0]}-{numbers_N[-1]} of {self.header.data!r}; leave {group} out"
                )
            if self.header.dtype == "int8":
                q, scale = quantise.quantise(f)
                stored = quantise.dequantise(q, scale)
                rows |= {group: q.cpu().numpy(), f"{group}{quantise.SUFFIX}": scale.cpu().numpy()}
            elif group in self.header.stored:
                rows[group] = stored.cpu().numpy()
            sums[group] = statistics.sums_of(stored)
        return rows, sums

    def _of_teacher(self, teacher: FrozenTeacher, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Group -> (B,1,C,g,g); the class token's is (B,1,C,1,1)."""
        grid = self.header.groups[TEACHER][-1]
        if CLASS_TOKEN not in self.header.groups:
            return {TEACHER: teacher.features(pixels, grid).unsqueeze(1)}
        features_BCgg, token_BC = teacher.with_class_token(pixels, grid)
        return {TEACHER: features_BCgg.unsqueeze(1), CLASS_TOKEN: token_BC[:, None, :, None, None]}


def _members(vae: FrozenVAE, groups: tuple[str, ...]) -> dict[str, list[layers.Layer]]:
    """group -> its layers. Raises ValueError for an unknown group, and for one whose layers are not of one width."""
    unknown = [g for g in groups if g not in layers.GROUPS]
    if unknown:
        raise ValueError(f"feature group {unknown[0]!r} does not exist; choose from {', '.join(layers.GROUPS)}")
    members = {g: [layer for layer in vae.layers if layer.group == g] for g in groups}
    for g, ls in members.items():
        if not ls or len({layer.channels for layer in ls}) > 1:
            widths = ", ".join(str(layer.channels) for layer in ls) or "none"
            raise ValueError(f"--features {g}: this VAE's layers of {g} have widths {widths}; a group needs layers of one width; leave {g} out")
    return members


def _shapes_of(teacher: FrozenTeacher | None, grid: int, class_token: bool) -> dict[str, tuple[int, int, int, int]]:
    """Group -> shape of what is kept of a teacher. Raises ValueError for one without a class token."""
    if class_token and teacher is None:
        raise ValueError("--class-token: is a teacher's; name one with --teacher")
    if teacher is None:
        return {}
    if class_token:
        teacher.require_class_token("--class-token")
    return {TEACHER: (1, teacher.channels, grid, grid)} | ({CLASS_TOKEN: (1, teacher.channels, 1, 1)} if class_token else {})


def make_header(
    vae: FrozenVAE,
    *,
    data: str,
    resolution: int,
    num_classes: int,
    grid: int,
    groups: tuple[str, ...],
    resampling: str,
    preprocessing: str,
    sizes: dict[str, int],
    teacher: FrozenTeacher | None = None,
    dtype: str = "float16",
    pooled: bool = False,
    views: int = 1,
    preprocessing_sha: str = "",
    scaling: Scaling | None = None,
    class_token: bool = False,
    captions: Captions | None = None,
) -> cache.Header:
    """The header of a cache made with this VAE: group shapes from its layers. pooled: of each group the mean of its layers alone. scaling: default
    the VAE's own; 1 where it has none. class_token: also the teacher's. captions: of all images.

    Raises ValueError for an unknown group or dtype, a teacher without a class token, and captions of mirrored views.
    """
    if dtype not in (*quantise.DTYPES, cache.ONLINE):
        raise ValueError(f"--dtype {dtype!r} does not exist; choose from {', '.join(quantise.DTYPES)}")
    members = _members(vae, groups)
    shapes = {g: (len(ls), ls[0].channels, grid, grid) for g, ls in members.items()}
    names = {g: tuple(f"{layer.number}:{layer.name}" for layer in ls) for g, ls in members.items()}
    if pooled:
        shapes = {g: (1, *shape[1:]) for g, shape in shapes.items()}
        names = {g: (f"{ls[0].number}-{ls[-1].number}:mean of {g}",) for g, ls in members.items()}
    of_teacher = _shapes_of(teacher, grid, class_token)
    shapes, names = shapes | of_teacher, names | {group: (teacher.name,) for group in of_teacher if teacher}
    side, scaling = resolution // vae.downsampling, scaling or vae.scaling or Scaling(factor=1.0)
    return cache.Header(
        schema_version=cache.SCHEMA_VERSION,
        data=data,
        vae=vae.name,
        vae_sha=vae.sha,
        scale=scaling.factor,
        resolution=resolution,
        num_classes=num_classes,
        latent_shape=(vae.channels, side, side),
        resampling=resampling,
        preprocessing=preprocessing,
        dtype=dtype,
        groups=shapes,
        layers=names,
        sizes=sizes,
        teacher=teacher.name if teacher else "",
        teacher_sha=teacher.sha if teacher else "",
        views=views,
        channel_scale=scaling.channel_scale,
        channel_bias=scaling.channel_bias,
        preprocessing_sha=preprocessing_sha,
        **({} if captions is None else captions.in_header(views)),
    )
