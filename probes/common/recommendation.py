"""From the values of criteria to a recommendation: picks, controls, and against forks rank correlation and regret. What `gsnr recommend` writes.

OUT/recommend.parquet   one line a row and criterion, as `gsnr.table` names its columns; "benefit" is a criterion's neighbour, with its interval
OUT/recommend.csv       one line a row: each criterion with its interval
OUT/recommend.md        the same for people
OUT/judged.parquet      where there are forks: each criterion against each of their metrics, one line a number
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from gsnr import files, plugins, ranking, table
from gsnr.intervals import student_interval
from gsnr.probes.common.case import Case, Interval, Row
from gsnr.probes.common.subject import bin_columns
from gsnr.train.forking import tables
from gsnr.train.forking.rows import VANILLA
from gsnr.train.runs.checkpoint import Checkpoint

DEFAULT = "gap"  # the only published criterion whose sign was right on forks
HIGHER = ("precision", "recall", "density", "coverage", "is")  # metrics of which more is better
PUBLISHED = (
    "RARE's 14 forks (arXiv 2609.34732) gave rank correlations of +.86 to +.92 with the benefit for the recoverability gap, on one model; on the "
    "demo's forks it ranked in reverse (docs/forks.md)"
)
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Values:
    """Of one criterion. sec: what it takes alone, shared passes with it."""

    name: str
    label: str
    of: dict[str, Interval]
    sec: float


@dataclass(frozen=True, kw_only=True)
class Benefit:
    """What forks say. by_seed: row -> (S,), above 0 better than no alignment. about: of `gsnr fork`."""

    metric: str
    by_seed: dict[str, Array]
    about: dict[str, Any]


def measure(case: Case, criteria: list[str]) -> list[Values]:
    """Each criterion, the shared passes by the first that needs them."""
    found = []
    for name in tqdm(criteria, desc="criteria", unit="criterion", leave=False):
        module, start, shared = plugins.find("criteria", name), time.perf_counter(), sum(case.sec.values())
        of = dict(module.measure(case))
        own = time.perf_counter() - start - (sum(case.sec.values()) - shared)
        passes = sum(sec for key, sec in case.sec.items() if key.split()[0] in module.PASSES)
        found.append(Values(name=name, label=module.LABEL, of=of, sec=own + passes))
    return found


def benefits(folder: Path, loaded: Checkpoint, metric: str | None) -> list[Benefit]:
    """Of the forks in a folder: of `metric` (default: the Fréchet distance, where they have it) first, then of their others. Raises ValueError where
    they are of another checkpoint, or lack the metric."""
    for name in (tables.RESULT, tables.TABLE):
        if not (folder / name).is_file():
            raise ValueError(f"--forks {folder}: holds no {name}; name a folder that `gsnr fork --out` wrote")
    try:
        about, runs = dict(files.read_json(folder / tables.RESULT)["about"]), pd.read_csv(folder / tables.TABLE)
        there = [name for name in runs.columns if name not in ("row", "seed")]
        runs = runs.astype({name: np.float64 for name in there} | {"row": str})
        missing = {"checkpoint", "checkpoint_sha"} - about.keys() | {"row", "seed"} - set(runs.columns)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--forks {folder}: {tables.RESULT} or {tables.TABLE} is none that `gsnr fork` wrote ({error})") from error
    if missing or not there:
        raise ValueError(f"--forks {folder}: {tables.RESULT} or {tables.TABLE} is none that `gsnr fork` wrote")
    if about["checkpoint_sha"] != loaded.sha:
        raise ValueError(f"--forks {folder}: are of {about['checkpoint']}, whose weights are not those of {loaded.folder}")
    metric = metric or ("frechet" if "frechet" in there else "velocity_loss")
    if metric not in there:
        raise ValueError(f"--benefit {metric}: the forks in {folder} have {', '.join(there)}")
    return [_benefit(runs, name, about) for name in dict.fromkeys((metric, *there))]


def _benefit(runs: pd.DataFrame, metric: str, about: dict[str, Any]) -> Benefit:
    wide = runs.pivot(index="row", columns="seed", values=metric)
    gain = (wide - wide.loc[VANILLA]) * (1 if metric in HIGHER else -1)
    whole = gain.dropna(axis=1, how="all").dropna(axis=0)
    return Benefit(metric=metric, by_seed={str(row): x.to_numpy(np.float64) for row, x in whole.iterrows() if row != VANILLA}, about=about)


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """benefits: what forks say, the metric to go by first; none without forks."""

    case: Case
    values: list[Values]
    benefits: list[Benefit]

    @property
    def benefit(self) -> Benefit | None:
        return self.benefits[0] if self.benefits else None

    @property
    def rows(self) -> list[Row]:
        return self.case.rows

    @cached_property
    def controls(self) -> NDArray[np.bool_]:
        return np.array([row.is_control for row in self.rows])

    def column(self, values: Values) -> Array:
        """(R,) of a criterion."""
        return np.array([values.of[row.label][0] for row in self.rows])

    def pick(self, values: Values) -> Row | None:
        """The target, not a control, where it is largest."""
        chosen = ranking.pick(np.where(self.controls, np.nan, self.column(values)))
        return None if chosen is None else self.rows[chosen]

    def misplaced(self, values: Values) -> list[str]:
        """The controls that do not rank last."""
        return [self.rows[i].label for i in ranking.misplaced(self.column(values), self.controls)]

    def judged(self, values: Values, controls: bool, benefit: Benefit | None = None) -> ranking.Judgement | None:
        """Against the forks (benefit: of this metric, not the first), over the rows that they have; with or without the controls. None for fewer
        than three."""
        benefit = benefit or self.benefit
        if benefit is None:
            return None
        known = [i for i, row in enumerate(self.rows) if row.label in benefit.by_seed and (controls or not row.is_control)]
        if len(known) < 3:
            return None
        return ranking.judge(self.column(values)[known], np.stack([benefit.by_seed[self.rows[i].label] for i in known]))

    @property
    def default(self) -> Values | None:
        """The gap, unless another criterion's interval of rank correlation lies wholly above its own."""
        gap = next((v for v in self.values if v.name == DEFAULT), None)
        judged = {v.name: j for v in self.values if (j := self.judged(v, False)) is not None}
        if gap is None or DEFAULT not in judged:
            return gap
        better = [v for v in self.values if v.name in judged and judged[v.name].interval[0] > judged[DEFAULT].interval[1]]
        return max(better, key=lambda v: judged[v.name].spearman, default=gap)


def _cell(interval: Interval) -> str:
    value, low, high = interval
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" + ("" if math.isnan(low) else f" [{low:.2g}, {high:.2g}]")


AT_AN_OPTIMUM = (
    "Caution: this checkpoint was trained with an alignment ({}). Near an optimum of both losses their gradients oppose for any target, so that "
    "cosine and balance speak of the training, not of the target; measure a checkpoint without alignment."
)


def said_by_forks(found: Recommendation) -> list[str]:
    """Which target forks say to take, if any: a sentence, none without forks. At 95 % for all targets together (Bonferroni)."""
    benefit = found.benefit
    rows = [row for row in found.rows if not row.is_control and benefit is not None and row.label in benefit.by_seed]
    if benefit is None or not rows:
        return []
    best = max(rows, key=lambda row: benefit.by_seed[row.label].mean())
    gain = gain_of(benefit, best, 1 - 0.05 / len(rows))
    verdict = "take it" if gain[1] > 0 else "no target is better than no alignment: by these forks, align nothing"
    return [f"By the forks ({tables.label(benefit.metric)}, {len(rows)} targets): {best.label} brings most, {_cell(gain)}; {verdict}."]


def said_of_default(found: Recommendation) -> list[str]:
    """What the default criterion recommends, and how far that was validated: two sentences."""
    default = found.default
    row = None if default is None else found.pick(default)
    if default is None or row is None:
        return ["Recommended: nothing; the default criterion, the recoverability gap, was not measured or is nowhere defined."]
    first = f"Recommended: {row.label}, by {default.label} ({_cell(default.of[row.label])})."
    judged = found.judged(default, controls=False)
    if found.benefit is None:
        return [first, f"Validated: not on this checkpoint; {PUBLISHED}; `--validate` or `--forks` asks here."]
    if judged is None:
        shared = sum(row.label in found.benefit.by_seed for row in found.rows if not row.is_control)
        return [first, f"Validated: not on this checkpoint; the forks have {shared} of its targets, and three at least are needed; {PUBLISHED}."]
    seeds, steps = len(next(iter(found.benefit.by_seed.values()))), found.benefit.about["steps"]
    low, high = judged.interval
    resolved = "which agrees" if low > 0 else "which says the reverse" if high < 0 else "which does not separate from 0"
    metric, regret = tables.label(found.benefit.metric), f"{judged.regret:.3g} ± {judged.regret_sd:.2g} over seeds"
    said = f"its rank correlation with the benefit ({metric}) is {judged.spearman:+.2f} [{low:+.2f}, {high:+.2f}], {resolved}"
    return [first, f"Validated: on forks of {steps} steps with {seeds} seeds {said}; its pick's regret is {regret}."]


def _criterion_lines(found: Recommendation) -> list[str]:
    head = ["criterion", "pick", "controls rank last", "seconds"]
    head += ["Spearman over targets", "Spearman with controls", "regret of the pick ± sd over seeds"] if found.benefit else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for values in found.values:
        row, wrong = found.pick(values), found.misplaced(values)
        known = row is not None and bool(np.isfinite(found.column(values)[found.controls]).any())
        verdict = "-" if not known else "yes" if not wrong else f"**failed**: {', '.join(wrong)}"
        cells = [values.label, "-" if row is None else row.label, verdict if found.controls.any() else "no controls", f"{values.sec:.1f}"]
        if found.benefit is not None:
            judged = [found.judged(values, controls) for controls in (False, True)]
            cells += ["-" if j is None else _cell((j.spearman, *j.interval)) for j in judged]
            cells.append("-" if judged[0] is None or math.isnan(judged[0].regret) else f"{judged[0].regret:.3g} ± {judged[0].regret_sd:.2g}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def gain_of(benefit: Benefit, row: Row, level: float = 0.95) -> Interval:
    """Mean over seeds and its t interval; NaN for a row without forks."""
    x_S = benefit.by_seed.get(row.label)
    if x_S is None:
        return float("nan"), float("nan"), float("nan")
    if len(x_S) < 2:
        return float(x_S[0]), float("nan"), float("nan")
    return float(x_S.mean()), *student_interval(float(x_S.mean()), float(x_S.std(ddof=1)) / np.sqrt(len(x_S)), len(x_S), level)


def markdown(found: Recommendation) -> str:
    c = found.case.subject.checkpoint
    head = ["row", *(v.label for v in found.values), *(["benefit by forks"] if found.benefit else [])]
    aligned = [AT_AN_OPTIMUM.format(c.alignment.name)] if c.alignment.taps else []
    lines = [
        *said_by_forks(found),
        *said_of_default(found),
        *aligned,
        "",
        *_criterion_lines(found),
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in found.rows:
        name = f"{row.label} (control)" if row.is_control else row.label
        cells = [name, *(_cell(v.of[row.label]) for v in found.values)]
        lines.append("| " + " | ".join([*cells, *([_cell(gain_of(found.benefit, row))] if found.benefit else [])]) + " |")
    o = found.case.options
    about = f"{c.folder}, step {c.step}: {o.n_images} held-out images, {found.case.train_images} train images; 95 % intervals in brackets."
    return "\n".join([*lines, "", f"{about} More is taken to be better; '-': not defined, ranks last."]) + "\n"


def _table_rows(found: Recommendation) -> list[dict[str, Any]]:
    shared = found.case.subject.columns("recommend", found.case.options)
    made = []
    for row in found.rows:
        here = shared | bin_columns(0, row.low, row.high) | {"target": row.label, "control": row.fork.control, "projector": "linear"}
        values = {v.name: v.of[row.label] for v in found.values} | ({"benefit": gain_of(found.benefit, row)} if found.benefit else {})
        for name, (value, low, high) in values.items():
            made.append(here | {"group": f"block {row.block}", "metric": name, "value": value, "low": low, "high": high})
    return made


def _judged_rows(found: Recommendation) -> list[dict[str, Any]]:
    """Every criterion against every metric of the forks. Spearman: its bootstrap interval; regret: one standard deviation over seeds on each side."""
    shared = found.case.subject.columns("judged", found.case.options) | bin_columns(0, 0.0, 1.0)
    made = []
    for benefit in found.benefits:
        for values in found.values:
            targets, all_rows = (found.judged(values, controls, benefit) for controls in (False, True))
            here = shared | {"target": values.name, "control": "none", "projector": "linear", "group": benefit.metric}
            numbers = {}
            if targets is not None:
                numbers["spearman_targets"] = (targets.spearman, *targets.interval)
                numbers["regret"] = (targets.regret, targets.regret - targets.regret_sd, targets.regret + targets.regret_sd)
            if all_rows is not None:
                numbers["spearman"] = (all_rows.spearman, *all_rows.interval)
            for name, (value, low, high) in numbers.items():
                made.append(here | {"metric": name, "value": value, "low": low, "high": high})
    return made


def _frame(found: Recommendation) -> pd.DataFrame:
    lines = []
    for row in found.rows:
        line: dict[str, Any] = {"row": row.label, "control": row.fork.control, "block": row.block, "t_low": row.low, "t_high": row.high}
        for values in found.values:
            line |= dict(zip((values.name, f"{values.name}_low", f"{values.name}_high"), values.of[row.label], strict=True))
        if found.benefit is not None:
            line |= dict(zip(("benefit", "benefit_low", "benefit_high"), gain_of(found.benefit, row), strict=True))
        lines.append(line)
    return pd.DataFrame(lines)


def write(out: Path, found: Recommendation) -> str:
    """Writes the tables; what recommend.md says."""
    words = markdown(found)
    default = found.default
    picks = {v.name: row.label for v in found.values if (row := found.pick(v)) is not None}
    about = {
        "said": [*said_by_forks(found), *said_of_default(found)],
        "labels": {v.name: v.label for v in found.values} | ({} if found.benefit is None else {"benefit": tables.label(found.benefit.metric)}),
        "picks": picks,
        "default": None if default is None else default.name,
        "failed": {v.name: found.misplaced(v) for v in found.values},
        "seconds": {v.name: round(v.sec, 2) for v in found.values},
        "benefit": None if found.benefit is None else found.benefit.metric,
        "created": found.case.subject.created,
    }
    out.mkdir(parents=True, exist_ok=True)
    with table.writing() as write_one:
        write_one(out / "recommend.parquet", "metrics", _table_rows(found), about)
        if judged := _judged_rows(found):
            of = {b.metric: tables.label(b.metric) for b in found.benefits}
            write_one(out / "judged.parquet", "metrics", judged, {"labels": {v.name: v.label for v in found.values} | of})
    files.write_texts({out / "recommend.csv": _frame(found).to_csv(index=False), out / "recommend.md": words})
    return words
