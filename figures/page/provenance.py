"""With which settings and versions a run's tables were measured, and how the run chose what the paper leaves open."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from markupsafe import Markup

from gsnr import table
from gsnr.figures.page.layout import Part, render, template
from gsnr.figures.page.listing import listing

# What the paper leaves open or contradicts (README, fidelity notes), and the option of a run that answers it
FIDELITY = (
    ("features to the token grid", "adaptive pooling (Sec. 4.2), bilinear (App. A)", "data.resampling"),
    ("mid / deep boundary", "4/4; 2/6 and 6/2 in Table D.14; by resolution (App. B) is 2/6", "alignment.split"),
    ("router depth", "4 layers (Table A.9), 5 (App. I)", "alignment.router_depth"),
    ("beta", '"scaling factors", no formula', "alignment.beta"),
    ("feature normalisation", "none mentioned", "alignment.features"),
    ("projector", 'one 3x3 convolution; "2.5 M" parameters does not fit it', "alignment.projector"),
    ("learning rate", "lost in the text copy", "optim.lr"),
    ("gradient clip", "2.0 (Table A.9)", "optim.clip"),
)
ESTIMATOR = ("G-SNR estimator", "plug-in (Eq. 6), biased by exactly 1/n", "unbiased U / V; the plug-in is a column of the tables")
UNSET = {"alignment.split": "as the cache groups its layers"}  # what an option means that was not given
_FOLDED = template("<details><summary>{{ summary }}</summary>{{ body }}</details>\n")


def _folded(summary: str, body: Markup) -> Markup:
    return render(_FOLDED, summary=summary, body=body)


def _fidelity(config: dict[str, str]) -> pd.DataFrame:
    """What the paper leaves open, beside what these runs did."""
    answers = [(question, said, config[key] or UNSET.get(key, "")) for question, said, key in FIDELITY if key in config]
    rows = [row for row in answers if row[2]]
    return pd.DataFrame([*rows, ESTIMATOR], columns=["question", "the paper", "here"])


def provenance(folder: Path, run: str) -> list[Part]:
    """Of a folder of tables; run: its name."""
    paths = sorted(path for path in folder.glob("*.parquet") if path.stem.count(".") == 0)
    settings, rows = {}, []
    for path in paths:
        written, first = table.provenance(path), table.read(path).iloc[0]
        settings[path.stem] = {key: str(value) for key, value in written["settings"].items() if key != "checkpoints"}
        checkpoints = ", ".join(f"{c['run']} (step {c['step']}, {c['sha'][:12]})" for c in written["checkpoints"])
        rows.append((path.stem, checkpoints, first["weights"], first["gsnr_version"], first["torch_version"], written["created"]))
    what = pd.DataFrame(rows, columns=["probe", "checkpoints (SHA-256)", "weights", "gsnr", "torch", "measured"])
    config = pd.json_normalize(table.provenance(paths[0])["checkpoints"][0]["config"]).astype(object)
    options = pd.DataFrame({"option": config.columns.astype(str), "value": ["" if x is None or x != x else str(x) for x in config.iloc[0]]})
    same = pd.DataFrame(settings).fillna("").rename_axis("setting").reset_index()
    return [
        Part("Provenance", listing(what, f"{run} provenance")),
        Part("Settings of the probes", _folded(f"{len(same)} settings", listing(same, f"{run} settings"))),
        Part("What the paper leaves open", listing(_fidelity(dict(options.to_numpy().tolist())), f"{run} fidelity")),
        Part("Configuration of the run", _folded(f"{len(options)} options", listing(options, f"{run} configuration"))),
    ]
