"""`gsnr coverage`: how often the 95 % interval of `gsnr.estimates.Estimate.ci` covers the truth, by simulation.

    gsnr coverage                                   the whole table, two to three minutes on one core
    gsnr coverage --only claim --repeats 10000      one case, more precisely
    gsnr coverage --json > coverage.json

Per-sample gradients g_i are drawn with a known mean and covariance, so that G-SNR = ||E g||^2 / tr Cov(g) is known, and are handed to
Estimate as a measurement would. How to read a row:

    gradients      the spectrum of Cov(g); `along` / `across`: the mean points in the noisiest / quietest direction; then the tails, if not normal
    eff. dim       effective dimension (tr Cov)^2 / tr(Cov^2), the true one
    cover          share of intervals that contain the true gsnr, in %, and its binomial standard error (at gsnr 0: that contain 0)
    low, high      share of intervals that lie wholly below, wholly above the truth, in %; `high` at gsnr 0 is false detection
    width          median width of the interval, over gsnr
    below          share that `below_detection` marks, in %
    caution        share that `Estimate.caution` marks, in %, and in `missed` its share among the intervals that miss the truth

Cases. claim: n = 256, an effective dimension of at least 10 and a gsnr of 0.05 to 10, where 93 to 97 % is claimed (at gsnr 0: at least
93 %). weak, small-n, low-dimension: outside of it. spike x: one direction carries the share x of tr Cov. heavy-tails: Student's t with 5
degrees of freedom in each coordinate, or one random scale for the whole of a sample's noise (t5, lognormal), which is what gradient norms do.
Every row has random numbers of its own, from --seed and its own name: rows do not change with --only, nor the table from run to run.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gsnr import commands
from gsnr.commandline import Parser, choose
from gsnr.estimates import Array, Estimate, trace_cov_sq
from gsnr.hashing import signs_of

TAKEN = 64  # samples whose e_i is taken: gsnr.passes.COV_SAMPLES, which is not imported since it needs torch
CHUNK = 300_000  # numbers drawn at once (2.4 MB, which fits a cache)


class Cell(NamedTuple):
    """One row: what is drawn, and the true gsnr."""

    case: str
    spectrum: str
    d: int
    mean: str
    tails: str
    n: int
    gsnr: float


def spectrum(name: str, d: int) -> Array:
    """Variances along the eigenvectors of Cov(g), (d,), largest first, of sum 1. `spike x`: the first has the share x, the others the rest evenly."""
    if name.startswith("spike"):
        share = float(name.split()[1])
        return np.array([share] + [(1 - share) / (d - 1)] * (d - 1))
    variance_d = np.ones(d) if name == "isotropic" else 1 / np.arange(1, d + 1)
    return variance_d / variance_d.sum()


def _grid(case: str, kinds: list[tuple[str, int, str]], sizes: list[int], gsnrs: list[float], tails: str = "normal") -> list[Cell]:
    """kinds: (spectrum, d, direction of the mean). Without a mean its direction is nothing."""
    cells = [Cell(case, s, d, mean if gsnr else "", tails, n, gsnr) for s, d, mean in kinds for n in sizes for gsnr in gsnrs]
    return list(dict.fromkeys(cells))


def table() -> list[Cell]:
    """All rows, in order."""
    power_law = [("power law", 100, "along"), ("power law", 100, "across")]
    spikes = [(f"spike {share}", d, mean) for share, d in ((0.3, 200), (0.5, 100), (0.9, 100)) for mean in ("along", "across")]
    return [
        *_grid("claim", [("isotropic", d, "") for d in (10, 40, 400)], [256], [0.0, 0.05, 0.1, 1.0, 10.0]),
        *_grid("claim", power_law, [256], [0.0, 0.05, 0.1, 1.0, 10.0]),
        *_grid("claim", spikes[:2], [256], [0.0, 0.05, 1.0]),
        *_grid("weak", [*(("isotropic", d, "") for d in (1, 10, 40)), power_law[0], spikes[0]], [256], [0.005, 0.02]),
        *_grid("small-n", [("isotropic", 40, ""), power_law[0]], [4, 8, 16, 32, 64, 128], [0.0, 0.05, 1.0]),
        *_grid("small-n", spikes[:1], [128], [0.0, 0.05, 1.0]),
        *_grid("low-dimension", [("isotropic", d, "") for d in (1, 2, 5)], [256], [0.0, 0.05, 0.1, 1.0]),
        *_grid("spiked", spikes[2:], [256], [0.0, 0.05, 1.0]),
        *_grid("heavy-tails", [("isotropic", 40, "")], [256], [0.0, 0.05, 1.0, 10.0], "t5 coordinates"),
        *_grid("heavy-tails", [("isotropic", 40, "")], [256, 32], [0.0, 0.05, 1.0, 10.0], "t5 scale"),
        *_grid("heavy-tails", [("isotropic", 40, "")], [256], [0.0, 0.05, 1.0], "lognormal scale"),
    ]


def noise(cell: Cell, rng: np.random.Generator, repeats: int) -> Array:
    """(repeats, n, d) of mean 0 and covariance diag(spectrum): the eigenvectors are the axes, which no estimate can see."""
    shape = (repeats, cell.n, cell.d)
    scale = np.sqrt(spectrum(cell.spectrum, cell.d))
    if cell.tails == "t5 coordinates":
        return rng.standard_t(5, shape) * np.sqrt(3 / 5) * scale
    z = rng.standard_normal(shape)
    if cell.tails == "t5 scale":
        z *= np.sqrt(3 / rng.chisquare(5, (repeats, cell.n, 1)))
    elif cell.tails == "lognormal scale":
        z *= np.exp(rng.standard_normal((repeats, cell.n, 1)) - 1)  # E exp(2 N(0, 1) - 2) = 1
    z *= scale
    return z


def drawn(cell: Cell, rng: np.random.Generator, repeats: int) -> Iterator[Estimate]:
    """Independent measurements, with signs and the samples that meet D chosen by their keys, as `measure` has it."""
    g = noise(cell, rng, repeats)
    if cell.mean == "along":
        g[:, :, 0] += np.sqrt(cell.gsnr)
    elif cell.mean == "across":
        g[:, :, -1] += np.sqrt(cell.gsnr)
    else:
        g += np.sqrt(cell.gsnr / cell.d)
    key = rng.spawn(1)[0].integers(0, 2**64, (repeats, cell.n), dtype=np.uint64)  # the gradients are what they were before keys were drawn
    sign, taken = signs_of(key), key <= np.sort(key, axis=1)[:, :TAKEN][:, -1:]
    sums, signed = g.sum(1), (sign[:, None] @ g)[:, 0]
    q = np.einsum("knd,knd->kn", g, g)
    r, e = ((g @ x[:, :, None])[:, :, 0] for x in (sums, signed))
    e[~taken] = np.nan
    for k in range(repeats):
        cov_sq = trace_cov_sq(q[k], r[k], e[k], sign[k])
        yield Estimate(group="all", q_n=q[k], r_n=r[k], sum_sq=float(sums[k] @ sums[k]), cov_sq=cov_sq)


def estimates(cell: Cell, repeats: int, seed: int) -> Iterator[Estimate]:
    """Those of one row of the table."""
    rng = np.random.default_rng([seed, zlib.crc32(repr(cell).encode())])
    at_once = max(1, CHUNK // (cell.n * cell.d))
    for start in range(0, repeats, at_once):
        yield from drawn(cell, rng, min(at_once, repeats - start))


def row(cell: Cell, repeats: int, seed: int, progress: Any) -> dict[str, Any]:
    """One line of the table; shares between 0 and 1, NaN where there is nothing to divide by."""
    seen = []
    for e in estimates(cell, repeats, seed):
        low, high = e.ci()
        seen.append((high < cell.gsnr, low > cell.gsnr, high - low, e.below_detection, bool(e.caution)))
        progress.update()
    too_low, too_high, width, below, caution = np.array(seen, dtype=float).T
    missed = (too_low + too_high) > 0
    coverage = 1 - float(missed.mean())
    variance_d = spectrum(cell.spectrum, cell.d)
    return cell._asdict() | {
        "effective_dimension": float(1 / np.square(variance_d).sum()),
        "coverage": coverage,
        "coverage_se": float(np.sqrt(coverage * (1 - coverage) / repeats)),
        "too_low": float(too_low.mean()),
        "too_high": float(too_high.mean()),
        "width_over_gsnr": float(np.median(width) / cell.gsnr) if cell.gsnr else float("nan"),
        "below_detection": float(below.mean()),
        "caution": float(caution.mean()),
        "caution_missed": float(caution[missed].mean()) if missed.any() else float("nan"),
    }


def simulate(cells: list[Cell], repeats: int, seed: int) -> list[dict[str, Any]]:
    """The rows of the table; the progress bar shows on a terminal only."""
    with tqdm(total=len(cells) * repeats, unit=" intervals", disable=None, leave=False) as progress:
        return [row(cell, repeats, seed, progress) for cell in cells]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as aligned markdown, shares in %."""
    lines = [["case", "gradients", "n", "d", "eff. dim", "gsnr", "cover", "+-", "low", "high", "width", "below", "caution", "missed"]]
    for r in rows:
        words = [r["spectrum"], r["mean"], "" if r["tails"] == "normal" else r["tails"]]
        shares = [r[key] for key in ("coverage", "coverage_se", "too_low", "too_high")]
        flags = [r[key] for key in ("below_detection", "caution", "caution_missed")]
        line = [r["case"], " ".join(filter(None, words)), str(r["n"]), str(r["d"]), f"{r['effective_dimension']:.1f}", f"{r['gsnr']:g}"]
        line += [f"{100 * x:.1f}" for x in shares] + [f"{r['width_over_gsnr']:.2f}"] + [f"{100 * x:.0f}" for x in flags]
        lines.append([word.replace("nan", "-") for word in line])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    lines.insert(1, ["-" * w if k < 2 else "-" * (w - 1) + ":" for k, w in enumerate(widths)])
    aligned = [[f"{x:<{w}}" if k < 2 else f"{x:>{w}}" for k, (x, w) in enumerate(zip(line, widths, strict=True))] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr coverage", __doc__)
    parser.add_number("--repeats", 1500, "intervals a row", low=1, high=10**6)
    parser.add_number("--seed", 0, "seed of all random numbers", low=0, high=2**63 - 1, metavar="S")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table: shares between 0 and 1, null where undefined")
    parser.add_argument("--only", metavar="CASE", help=f"one case: {', '.join(dict.fromkeys(c.case for c in table()))}")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.only is not None:
        choose("--only", args.only, dict.fromkeys(cell.case for cell in table()))
    cells = [cell for cell in table() if args.only in (None, cell.case)]
    rows = simulate(cells, args.repeats, args.seed)
    if args.json:
        defined = [{key: None if value != value else value for key, value in r.items()} for r in rows]
        print(json.dumps({"repeats": args.repeats, "seed": args.seed, "level": 0.95, "rows": defined}, indent=1, allow_nan=False))
    else:
        print(markdown(rows))
    return 0


if __name__ == "__main__":
    commands.run("coverage")
