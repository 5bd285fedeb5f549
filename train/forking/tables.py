"""What `gsnr fork` writes of its finished forks.

OUT/table.csv         one line a fork: row, seed, each metric
OUT/differences.csv   one line a row, metric and range of t: the difference from vanilla, its intervals over seeds and over images
OUT/table.md          the same for people, and what could have been seen
OUT/forks.json        the checkpoint, the options, the differences over all t, and the power
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from gsnr import files, plugins
from gsnr.train.forking.compare import Difference, Measured, Power
from gsnr.train.grid import COLUMNS

TABLE, DIFFERENCES, WORDS, RESULT = "table.csv", "differences.csv", "table.md", "forks.json"


def runs_frame(forks: list[Measured]) -> pd.DataFrame:
    """One line a fork."""
    return pd.DataFrame([{"row": fork.row, "seed": fork.seed} | fork.values for fork in forks])


def differences_frame(found: list[Difference]) -> pd.DataFrame:
    """One line a difference; intervals as two columns each, NaN where there is none."""
    lines = []
    for d in found:
        line = asdict(d)
        for kind in ("over_seeds", "over_images"):
            line[f"{kind}_low"], line[f"{kind}_high"] = line.pop(kind)
        lines.append(line | {"separates": d.separates})
    plain = [f.name for f in fields(Difference) if f.name not in ("over_seeds", "over_images")]
    ends = [f"{kind}_{end}" for kind in ("over_seeds", "over_images") for end in ("low", "high")]
    return pd.DataFrame(lines, columns=[*plain, *ends, "separates"])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.4g}"


def _interval(low_high: tuple[float, float]) -> str:
    return "" if math.isnan(low_high[0]) else f" [{low_high[0]:+.4g}, {low_high[1]:+.4g}]"


def label(metric: str) -> str:
    """What tables call a metric."""
    return COLUMNS[metric] if metric in COLUMNS else str(plugins.constant("metrics", metric, "LABEL"))


def markdown(about: dict[str, Any], found: list[Difference], lines: list[Power]) -> str:
    """about: the "about" of forks.json."""
    whole = [d for d in found if (d.t_low, d.t_high) == (0.0, 1.0)]
    metrics = list(dict.fromkeys(d.metric for d in whole))
    length = f"Forks of {about['checkpoint']} (step {about['step']}), {about['steps']} steps each, learning rate {about['lr']:g}"
    if not whole:
        few = [] if lines else ["One seed says nothing of what chance does: name two or more with --seeds, or rows beside none."]
        return "\n".join([f"{length}: {', '.join(about['rows'])} alone; there is nothing to compare.", "", *few, *_said(whole, lines)]) + "\n"
    text = [
        f"{length}: each row minus the fork without alignment of the same seed, which has the same batches, times, noise and optimizer state.",
        "In brackets the 95 % interval over seeds, in braces that over images (or samples) with these seeds.",
        "",
        "| row | seeds | " + " | ".join(label(metric) for metric in metrics) + " |",
        "|" + "---|" * (2 + len(metrics)),
    ]
    for row in dict.fromkeys(d.row for d in whole):
        own = {d.metric: d for d in whole if d.row == row}
        braces = {m: _interval(d.over_images).replace("[", "{").replace("]", "}") for m, d in own.items()}
        cells = [f"{_number(d.difference)}{_interval(d.over_seeds)}{braces[m]}" for m, d in own.items()]
        text.append(f"| {row} | {max(d.seeds for d in own.values())} | " + " | ".join(cells) + " |")
    return "\n".join([*text, "", *_said(whole, lines)]) + "\n"


def _said(whole: list[Difference], lines: list[Power]) -> list[str]:
    """What separates, and what could have been seen."""
    text = []
    for metric in dict.fromkeys(d.metric for d in whole if d.seeds > 1):
        own = [d for d in whole if d.metric == metric]
        apart = sum(d.separates for d in own)
        text.append(f"{label(metric)}: {apart} of {len(own)} rows separate from vanilla over seeds; {0.05 * len(own):.2g} would by chance.")
    for p in lines:
        seen = f"effects above {p.unpaired:.2g} would have been seen with {p.seeds} seeds if rows shared no batches (from vanilla against vanilla)"
        if not math.isnan(p.paired):
            seen += f", above {p.paired:.2g} as they are, paired (from the rows' spread)"
        text.append(f"{label(p.metric)}: {seen}; two-sided 5 %, power 80 %.")
    return text


def write(out: Path, about: dict[str, Any], forks: list[Measured], found: list[Difference], lines: list[Power]) -> str:
    """Writes all four files, or none; what table.md says."""
    words = markdown(about, found, lines)
    whole = [asdict(d) for d in found if (d.t_low, d.t_high) == (0.0, 1.0)]
    texts = {
        TABLE: runs_frame(forks).to_csv(index=False),
        DIFFERENCES: differences_frame(found).to_csv(index=False),
        WORDS: words,
        RESULT: json.dumps({"about": about, "differences": whole, "power": [asdict(p) for p in lines]}, indent=2) + "\n",
    }
    files.write_texts({out / name: text for name, text in texts.items()})
    return words
