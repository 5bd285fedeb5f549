"""Options that several probes share. A probe's own class Options is one of these, or a child of one with options of its own.

Imports nothing heavy: `gsnr probe --help` reads this.
"""

from __future__ import annotations

from dataclasses import dataclass

from gsnr.options import option
from gsnr.probes.common.bins import SPACINGS

NONE, SHUFFLED, WITHIN_CLASS, CONSTANT = "none", "shuffled", "shuffled_class", "constant"  # controls of a target


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What all probes have. The options identify a measurement: with others, a table is not taken for the same."""

    n_images: int = option(256, "held-out images, each used once in every bin", low=3, high=2**20)
    first_image: int = option(0, "place of the first of them in a fixed random order: disjoint ones check a finding", low=0, high=2**30)
    seed: int = option(0, "seed of times, noise and projector fits", low=0)


@dataclass(frozen=True, kw_only=True)
class BinOptions(ProbeOptions):
    """Of a probe that measures in bins of t."""

    bins: int = option(10, "bins of t", low=1, high=1000)
    spacing: str = option("t", "bins equal in t, or in logSNR from t = 0.01 to 0.99", tuple(SPACINGS))

    def edges(self, index: int) -> tuple[float, float]:
        """Lower and upper end in t of a bin."""
        edges = SPACINGS[self.spacing](self.bins)
        return float(edges[index]), float(edges[index + 1])


@dataclass(frozen=True, kw_only=True)
class GradientOptions(BinOptions):
    """Of a probe that measures G-SNR."""

    draws: int = option(1, "draws of t and noise per image; n still counts images", low=1, high=1024)
    engine: str = option("auto", "how per-sample gradients are computed", ("auto", "loop", "vmap", "ghost"))
    precision: str = option(
        "float32",
        "of the passes that gradients come from; bfloat16 is autocast, tf32 a GPU's",
        ("float32", "tf32", "bfloat16"),
        also={"fp32": "float32", "bf16": "bfloat16"},
    )
    batch: int = option(64, "samples (images x draws) at once, and of them as many as fit: fewer take less memory", low=1, high=2**20)
    batch_ref: int = option(256, "batch size B of the column gsnr_batch = B * gsnr", low=1, high=2**30)


@dataclass(frozen=True, kw_only=True)
class TargetOptions(GradientOptions):
    """Of a probe that compares alignment targets."""

    targets: tuple[str, ...] = option((), "alignment targets: all, or own, uniform_mid, sra2, ... (default: own,uniform_mid,uniform_deep)")
    controls: tuple[str, ...] = option(
        (SHUFFLED, WITHIN_CLASS, CONSTANT),
        "controls: shuffled (of every target: its floor), and of the first target shuffled_class (within class, if any) and constant; or none",
        (SHUFFLED, WITHIN_CLASS, CONSTANT, NONE),
    )
    projector: tuple[str, ...] = option(("fit", "ckpt"), "fit alike, ckpt (the checkpoint's own), fresh", ("fit", "ckpt", "fresh"))
    fit: str = option("auto", "how projectors are fitted: ridge in closed form where they are linear, or descent for all", ("auto", "descent"))
    fit_samples: int = option(16384, "train samples (image, t, noise) that linear projectors are solved from", low=64, high=2**24)
    fit_steps: int = option(6000, "steps that the descent of other projectors may take until it has converged", low=1, high=10**7)
