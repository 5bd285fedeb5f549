"""Time and memory of a FID from 50,000 x 2048 features: streamed moments, the distance, its jackknife and its limit.

    python -m tests.benchmarks.metrics
    python -m tests.benchmarks.metrics --samples 10000 --width 512

Wanted, on two cores: under 2 minutes and 4 GiB. Features are random numbers, made a batch at a time; making them is not counted.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from gsnr.train.metrics import Blocks, Moments
from gsnr.train.metrics._frechet import with_spread

BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.1, 1, args.width).astype(np.float32)
    reference = Moments(n=None, mean=np.zeros(args.width), covariance=np.diag(scale.astype(np.float64) ** 2))
    blocks, streaming = Blocks(args.samples), 0.0
    for first in range(0, args.samples, BATCH):
        part = rng.standard_normal((min(BATCH, args.samples - first), args.width), np.float32) * scale
        before = time.perf_counter()
        blocks.add(part)
        streaming += time.perf_counter() - before
    before = time.perf_counter()
    values = with_spread("fid", blocks, reference)
    took = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.samples} x {args.width}: moments {streaming:.1f} s, FID with spread and limit {took:.1f} s, peak {peak:.2f} GiB")
    print(", ".join(f"{key} {value:.4f}" for key, value in values.items() if value is not None), "(the truth is 0)")


if __name__ == "__main__":
    main()
