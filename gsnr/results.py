"""What `gsnr.measure` and `gsnr.compare` return: estimates per group, to look at as text or as a pandas frame, to merge and to save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsnr.comparison import Comparison
from gsnr.estimates import LEVEL, Array, Estimate
from gsnr.moments import ALL, Moments

if TYPE_CHECKING:
    import pandas as pd

NONE = (float("nan"), float("nan"))


def _interval(estimate: Estimate) -> tuple[float, float]:
    """The 95 % interval, NaN where there is none."""
    return estimate.ci() if estimate.has_interval else NONE


def _estimate_row(estimate: Estimate) -> dict[str, Any]:
    low, high = _interval(estimate)
    return {
        "n": estimate.n,
        "gsnr": estimate.gsnr,
        "gsnr_low": low,
        "gsnr_high": high,
        "below_detection": estimate.below_detection,
        "signal": estimate.signal,
        "noise": estimate.noise,
        "gsnr_plugin": estimate.gsnr_plugin,
        "noise_scale": estimate.noise_scale,
        "detection_limit": estimate.detection_limit,
        "effective_dimension": estimate.effective_dimension,
        "n_zero": estimate.n_zero,
        "caution": "; ".join(estimate.caution),
    }


def _comparison_row(c: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {"n": c.n, "resolved": c.resolved}
    for name, value, low_high in (
        ("gsnr_a", c.a.gsnr, _interval(c.a)),
        ("gsnr_b", c.b.gsnr, _interval(c.b)),
        ("gsnr_difference", c.gsnr_difference, c.gsnr_difference_ci() if c.has_interval else NONE),
        ("cosine", c.cosine, c.cosine_ci() if c.has_interval else NONE),
        ("constructive", c.constructive, c.constructive_ci() if c.has_interval else NONE),
    ):
        row |= {name: value, f"{name}_low": low_high[0], f"{name}_high": low_high[1]}
    return row | {"caution": "; ".join(c.caution)}


def _frame(rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="group"))


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3g}"


def _cell(row: dict[str, Any], name: str) -> str:
    """A value with its interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return _number(row[name]) + ("" if low != low else f" [{_number(low)}, {_number(high)}]")


def _table(title: str, header: tuple[str, ...], rows: Mapping[str, tuple[str, ...]], cautions: Mapping[str, tuple[str, ...]]) -> str:
    """Aligned text, the first and the last column to the left; below it each caution once, with the groups it is about."""
    lines = [("group", *header, "")] + [(group, *cells) for group, cells in rows.items()]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    aligned = [[x.ljust(w) if k in (0, len(line) - 1) else x.rjust(w) for k, (x, w) in enumerate(zip(line, widths, strict=True))] for line in lines]
    about: dict[str, list[str]] = {}
    for group, own in cautions.items():
        for caution in own:
            about.setdefault(caution, []).append(group)
    notes = [f"  {caution} ({'every group' if len(groups) == len(rows) else ', '.join(groups)})" for caution, groups in about.items()]
    return "\n".join([title, *("  ".join(line).rstrip() for line in aligned), *(["cautions:"] if notes else []), *notes])


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """What `measure` returns: `result[group]` is an Estimate, `result.groups` the labels, `result.losses` float64 (n,)."""

    moments: Moments
    estimates: dict[str, Estimate]
    engine: str

    def __getitem__(self, group: str) -> Estimate:
        return _of_group(self.estimates, group)

    def __repr__(self) -> str:
        return f"Result({self.estimates[ALL]!r}, {len(self.groups)} groups, engine {self.engine!r})"

    @property
    def groups(self) -> tuple[str, ...]:
        """Labels, "all" first."""
        return tuple(self.estimates)

    @property
    def losses(self) -> Array:
        """One value per sample (the mean over its draws)."""
        return self.moments.losses

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())

    def to_frame(self) -> pd.DataFrame:
        """One row a group (the index): n, gsnr with its 95 % interval (NaN where there is none), below_detection, signal, noise, and the rest of
        `Estimate`; `caution` is one text, empty where nothing speaks against the interval."""
        return _frame({group: _estimate_row(estimate) for group, estimate in self.estimates.items()})

    def summary(self) -> str:
        """The same as a text to read: per group n, gsnr with its 95 % interval, and whether that is below detection; then the cautions."""
        title = f"G-SNR by engine {self.engine!r}, mean loss {_number(self.loss)}; {LEVEL:.0%} interval in brackets"
        rows = {}
        for group, estimate in self.estimates.items():
            row = _estimate_row(estimate)
            below = "below detection" if row["below_detection"] and estimate.has_interval else ""
            rows[group] = (str(row["n"]), _cell(row, "gsnr"), _number(row["noise_scale"]), below)
        return _table(title, ("n", "gsnr", "noise scale"), rows, {group: estimate.caution for group, estimate in self.estimates.items()})

    def merge(self, other: Result) -> Result:
        """Pools two results of disjoint samples: exact signal and noise, but no interval (that needs g_i . (S_1 + S_2))."""
        moments = self.moments.merge(other.moments)
        engine = self.engine if self.engine == other.engine else f"{self.engine}+{other.engine}"
        return Result(moments=moments, estimates=moments.estimates(None, None), engine=engine)

    def save(self, path: str | Path) -> None:
        """Saves the sums as safetensors (twice the parameters' size), so that results of disjoint samples can be merged later."""
        self.moments.save(Path(path), {"engine": self.engine})

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """What `save` wrote, without intervals. Raises ValueError, naming the file, for a missing, damaged or foreign one."""
        moments, metadata = Moments.load(Path(path))
        return cls(moments=moments, estimates=moments.estimates(None, None), engine=metadata["engine"])


@dataclass(frozen=True, kw_only=True, repr=False)
class ComparisonResult:
    """What `compare` returns: `result[group]` is a Comparison; `result.a` and `result.b` are the Results of the two losses."""

    a: Result
    b: Result
    comparisons: dict[str, Comparison]

    def __getitem__(self, group: str) -> Comparison:
        return _of_group(self.comparisons, group)

    def __repr__(self) -> str:
        return f"ComparisonResult({self.comparisons[ALL]!r}, {len(self.groups)} groups, engine {self.a.engine!r})"

    @property
    def groups(self) -> tuple[str, ...]:
        """Labels, "all" first."""
        return tuple(self.comparisons)

    def to_frame(self) -> pd.DataFrame:
        """One row a group (the index): n, resolved, and gsnr_a, gsnr_b, gsnr_difference, cosine, constructive, each with its 95 % interval."""
        return _frame({group: _comparison_row(comparison) for group, comparison in self.comparisons.items()})

    def summary(self) -> str:
        """The same as a text to read."""
        title = f"losses a and b on the same samples by engine {self.a.engine!r}; {LEVEL:.0%} interval in brackets"
        rows = {}
        for group, comparison in self.comparisons.items():
            row = _comparison_row(comparison)
            values = [_cell(row, name) for name in ("gsnr_a", "gsnr_b", "cosine", "constructive")]
            rows[group] = (str(row["n"]), *values, "" if row["resolved"] else "not resolved")
        return _table(title, ("n", "gsnr a", "gsnr b", "cosine", "constructive"), rows, {group: c.caution for group, c in self.comparisons.items()})


def _of_group(values: dict[str, Any], group: str) -> Any:
    if group not in values:
        raise KeyError(f"no group {group!r}; groups: {', '.join(values)}")
    return values[group]
