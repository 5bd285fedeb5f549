"""`python -m tests.benchmarks.fits`: do fitted projectors leave the G-SNR that they should, where the answer is known?

Simulated worlds: "images" of 16 tokens pass a small nonlinear backbone, h; the target is y = A h + noise with A known (or, shuffled, that of another
image), and the probe's own code solves a 3x3 projector for it from 768 images and chooses its penalty on 128. Under smooth L1 the true A leaves a
residual that says nothing of h, so E g = 0; so does the mean under a shuffled target, whatever the loss. The interval of the G-SNR of the backbone's
gradient, on 256 new images, should hold 0 in 95 of 100 worlds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import gsnr
from gsnr.probes.common import fit
from gsnr.probes.common.candidates import Candidate
from gsnr.probes.common.descent import Step
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.ridge import CHOOSES, SOLVES
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.projectors.conv3x3 import Projector

D, C, T, GRID = 6, 4, 16, 4
OPTIONS = TargetOptions(bins=1, n_images=8, fit_samples=768, projector=("fit",))
CASES = {
    "true, smooth L1": ("none", losses.smooth_l1),
    "shuffled, smooth L1": ("shuffled", losses.smooth_l1),
    "shuffled, cosine": ("shuffled", losses.cosine),
}


class Given(TargetAlignment):
    """A target that the batch holds, with a projector and a loss of choice."""

    def __init__(self, projector: nn.Module, loss: Any) -> None:
        super().__init__(AlignmentConfig(tap=1))
        self.projector, self.loss_function = projector, loss

    def target(self, batch: dict[str, Tensor], h_BTD: Tensor) -> Tensor:
        return batch["target"]

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return self.loss_function(projected_BTC, target_BTC)


class World:
    """A backbone, A, and as many images as are asked for; all a function of the seed."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, D))
        self.a_DC, self.mean_C = torch.randn(D, C), torch.tensor([2.0, 0.0, -1.0, 0.5])

    def truth(self, x: Tensor) -> Tensor:
        """E[y|h]."""
        with torch.no_grad():
            return self.backbone(x) @ self.a_DC + self.mean_C

    def batch(self, n: int) -> dict[str, Tensor]:
        """Tokens of one image are alike, and so is their noise."""
        x, noise = (torch.randn(n, 1, k) + 0.5 * torch.randn(n, T, k) for k in (D, C))
        return {"x": x, "target": self.truth(x) + noise}


def fitted(world: World, control: str, loss: Any) -> Candidate:
    """A projector, by the probe's code."""
    counts = {SOLVES: 12, CHOOSES: 2}
    batches = {part: [(world.batch(64), world.batch(64)) for _ in range(count)] for part, count in counts.items()}

    def steps(subject: Any, seed: int, made: Any, count: int, part: int = SOLVES, first: int = 0) -> Iterator[Step]:
        for own, other in batches[part]:
            with torch.no_grad():
                h_BTD = world.backbone(own["x"])
            yield own, {"shuffled": other}, h_BTD

    candidate = Candidate(target="given", control=control, projector="fit", alignment=Given(Projector(D, C, GRID), loss))
    nobody: Any = SimpleNamespace()
    with mock.patch.object(fit, "fit_batches", steps):
        fit.fit(nobody, OPTIONS, [candidate], fit.means(nobody, 0, [replace(candidate, control="none")]))
    return candidate


def measured(world: World, candidate: Candidate, n: int = 256) -> gsnr.Estimate:
    """Of the backbone's gradient on new images."""
    own, other = world.batch(n), world.batch(n)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return candidate.loss(model(batch["x"]), batch["target"])

    return gsnr.measure(world.backbone, loss, [own | {"target": (other if candidate.control == "shuffled" else own)["target"]}])["all"]


def covered(case: str, worlds: int, first: int = 0) -> float:
    """Share of worlds whose interval holds 0."""
    control, loss = CASES[case]
    inside = []
    for seed in tqdm(range(first, first + worlds), desc=case, unit="world", leave=False):
        world = World(seed)
        low, high = measured(world, fitted(world, control, loss)).ci()
        inside.append(low <= 0 <= high)
    return float(np.mean(inside))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=400, help="of each case (default: 400)")
    args = parser.parse_args()
    for case in CASES:
        print(f"{case:22} {covered(case, args.worlds):.1%} of {args.worlds} intervals hold 0", flush=True)


if __name__ == "__main__":
    main()
