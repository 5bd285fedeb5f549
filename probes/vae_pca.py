"""The feature hierarchy in pictures: PCA of group-averaged VAE features, first three components as red, green, blue (AHPA Fig. 4).

A group's features are averaged over its layers; a PCA is fitted to all tokens of the held-out images (scikit-learn), one for each group.
A component's sign is chosen so that its largest loading is positive. Its colour runs from the 1st to the 99th percentile over the set.
Shapes: N images, T tokens, L layers, C channels, (g,g) token grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from tqdm import tqdm

from gsnr.probes.common.options import ProbeOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import NOWHERE, Subject
from gsnr.table import NAN
from gsnr.train import vae as vaes

SUMMARY = "PCA maps of group-averaged VAE features, and the variance that three components explain"
KIND = "metrics"
SCALES = ()  # mostly the pictures, which are few
Options = ProbeOptions
COMPONENTS = 3
SHOWN = 8  # images in the table of maps
LARGEST_PICTURE = 128  # pixels a side of the decoded images in it


def cannot(subject: Subject, options: Options) -> str | None:
    if subject.header.maps:
        return None
    return f"{subject.header.data!r} holds no features; prepare it again with --features G1,G2,G3,G4, or name other data with --data"


def plan(subject: Subject, options: Options) -> list[str]:
    return [f"PCA of {', '.join(subject.header.maps)} over the tokens of {options.n_images} held-out images; maps of the first {SHOWN}"]


def group_average(subject: Subject, group: str, images_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N,T,C): features of held-out images, averaged over the group's layers."""
    parts = []
    for index in np.array_split(images_N, -(-len(images_N) // 64)):
        f_NLCgg = subject.splits["heldout"].take(index, (group,))[group]
        parts.append(f_NLCgg.astype(np.float32).mean(1).reshape(len(index), f_NLCgg.shape[2], -1).transpose(0, 2, 1))
    return np.concatenate(parts)


def components(f_NTC: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """(N,T,3) projections and (3,) shares of the variance; sign and order are a function of the features."""
    tokens = f_NTC.reshape(-1, f_NTC.shape[-1]).astype(np.float64)
    pca = PCA(COMPONENTS, svd_solver="full" if len(tokens) < tokens.shape[1] else "covariance_eigh").fit(tokens)
    signs = np.sign(pca.components_[np.arange(COMPONENTS), np.abs(pca.components_).argmax(1)])
    projected = (tokens - pca.mean_) @ (pca.components_ * signs[:, None]).T
    return projected.reshape(*f_NTC.shape[:2], COMPONENTS).astype(np.float32), pca.explained_variance_ratio_


def colours(p_NT3: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,T,3) in [0, 1]: each component from its 1st to its 99th percentile over the set. A component that does not vary is 0."""
    low, high = np.percentile(p_NT3, (1, 99), axis=(0, 1))
    width = np.where(high > low, high - low, 1.0)
    return np.clip((p_NT3 - low) / width, 0, 1).astype(np.float32)


@torch.no_grad()
def pictures(subject: Subject, images_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N,s,s,3) in [0, 1]: the held-out images as the VAE decodes them (the cache holds no pixels), at most 128 pixels a side. N is 0 where it
    has no decoder."""
    frozen = vaes.load(subject.header.vae)
    if frozen.sha != subject.header.vae_sha:
        raise ValueError(f"{subject.header.vae!r}: not the VAE that made the latents ({subject.header.vae_sha[:12]})")
    if not frozen.decodes:
        return np.empty((0, 1, 1, 3), np.float32)
    mean = subject.splits["heldout"].take(images_N, ("mean",))["mean"]
    pixels = torch.cat([frozen.decode(part) for part in torch.from_numpy(mean).split(4)]).clamp(-1, 1)
    side = min(LARGEST_PICTURE, pixels.shape[-1])
    return ((F.adaptive_avg_pool2d(pixels, side) + 1) / 2).permute(0, 2, 3, 1).numpy()


def _map_rows(key: dict[str, Any], rgb_Nhw3: NDArray[np.float32]) -> list[dict[str, Any]]:
    n, h, w, _ = rgb_Nhw3.shape
    place = zip(*(axis.ravel().tolist() for axis in np.mgrid[:n, :h, :w]), rgb_Nhw3.reshape(-1, 3).tolist(), strict=True)
    return [key | {"image_id": i, "y": y, "x": x, "red": r, "green": g, "blue": b} for i, y, x, (r, g, b) in place]


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "metrics" (explained_variance, group, bin = component) and "maps"."""
    shown = min(SHOWN, options.n_images)
    shared = subject.columns("vae_pca", options) | {"target": "features", "control": "none", "projector": "none"}
    nowhere = NOWHERE | {"low": NAN, "high": NAN}
    key = {name: shared[name] for name in ("run", "checkpoint", "vae", "data")}
    rows: Rows = {"metrics": [], "maps": _map_rows(key | {"group": "image"}, pictures(subject, subject.images(options)[:shown]))}
    for group, (_, _, g, _) in tqdm(subject.header.maps.items(), desc="vae_pca", unit="group", leave=False):
        projected, shares = components(group_average(subject, group, subject.images(options)))
        rows["maps"] += _map_rows(key | {"group": group}, colours(projected)[:shown].reshape(shown, g, g, COMPONENTS))
        here = shared | nowhere | {"group": group, "metric": "explained_variance"}
        rows["metrics"] += [here | {"bin": i, "value": float(share)} for i, share in enumerate(shares)]
    return rows, {"images": options.n_images}
