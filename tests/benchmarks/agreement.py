"""`python -m tests.benchmarks.agreement --run RUN`: do two probes of disjoint images agree as often as their intervals say?

Alignment G-SNR of the checkpoint's own projector and of its controls, on disjoint sets of held-out images, two and two, with other times and noise
in every repetition. With --projector fit every probe fits its projectors anew, on other train samples and with other partners, so that the noise of
refitting is in the difference, and not in the intervals. A cell is one of target, parameter group and bin; with honest standard errors
|difference| / sqrt(se1^2 + se2^2) is below 1.96 in 95 % of them.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from gsnr.probes import alignment
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache
from gsnr.probes.common.subject import Subject, load

CONTROLS = ("shuffled", "constant")
CELL = ["target", "control", "group", "bin"]


def _probe(subject: Subject, options: TargetOptions) -> pd.DataFrame:
    """Cells with their standard errors."""
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = alignment.run(subject, options, ResumeCache(Path(folder)), None)
    cells = pd.DataFrame(rows["cells"]).set_index(CELL)
    half = (cells["gsnr_high"] - cells["gsnr_low"]) / 2
    return cells.assign(se=half / stats.t.ppf(0.975, cells["n"] - 1))


def differences(run: Path, images: int, bins: int, repetitions: int, projector: str = "ckpt", fit_samples: int = 64) -> pd.DataFrame:
    """One row a cell and pair of probes: z = difference / standard error."""
    subject = load(run, data=None, vae_name=None, model=None, weights="ema")
    pairs = subject.splits["heldout"].size // (2 * images)
    found: list[pd.DataFrame] = []
    for seed, pair in tqdm(list(product(range(repetitions), range(pairs))), desc="pairs of probes", unit="pair", leave=False):
        shared: dict[str, Any] = {"bins": bins, "n_images": images, "fit_samples": fit_samples, "projector": (projector,), "controls": CONTROLS}
        a, b = (_probe(subject, TargetOptions(**shared, seed=2 * seed + side, first_image=(2 * pair + side) * images)) for side in (0, 1))
        z: pd.Series = (a["gsnr"] - b["gsnr"]) / np.sqrt(a["se"] ** 2 + b["se"] ** 2)
        found.append(z.rename("z").reset_index().assign(seed=seed, pair=pair))
    return pd.concat(found, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with an alignment")
    parser.add_argument("--images", type=int, default=64, help="of each probe (default: 64)")
    parser.add_argument("--bins", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=4, help="with other times and noise (default: 4)")
    parser.add_argument("--projector", choices=("ckpt", "fit"), default="ckpt", help="the checkpoint's own, or fitted anew by each probe")
    parser.add_argument("--fit-samples", type=int, default=16384, help="of each fit (default: 16384)")
    args = parser.parse_args()
    z = differences(args.run, args.images, args.bins, args.repetitions, args.projector, args.fit_samples)
    agree = z.assign(agree=z["z"].abs() < 1.96)
    print(agree.groupby(["target", "control"])["agree"].agg(["mean", "count"]))
    print(f"n = {args.images}: {agree['agree'].mean():.1%} of {len(agree)} cells agree")


if __name__ == "__main__":
    main()
