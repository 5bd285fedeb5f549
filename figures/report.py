"""`gsnr report`: everything that was measured of some runs, on one HTML page that needs no network.

    gsnr report --run runs/demo                                      into runs/demo/figures/report.html
    gsnr report --run runs/figures/sit-s0 --run runs/demo --out report.html

The page holds, for each run: what was measured, with which settings and versions; what the paper leaves open and how this run chose; every
figure that its tables allow, with its caption; and the tables of `figures.tables`. Figures that compare runs come first.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from tqdm import tqdm

from gsnr import commands, files, table
from gsnr.commandline import Parser, a_path
from gsnr.figures import command as drawing
from gsnr.figures import tables
from gsnr.figures.style import paper

# What the paper leaves open or contradicts (docs/fidelity.md), and the option of a run that answers it
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


@dataclass
class Section:
    """A part of the page: (heading, HTML) pairs below a title."""

    title: str
    parts: list[tuple[str, str]] = field(default_factory=list)


def _picture(figure: Any, title: str, caption: str) -> str:
    buffer = io.BytesIO()
    with paper():
        figure.savefig(buffer, format="png", dpi=200)
    data = base64.b64encode(buffer.getvalue()).decode()
    about, text = jinja2.filters.escape(title), jinja2.filters.escape(caption)
    return f'<figure><img alt="{about}" src="data:image/png;base64,{data}"><figcaption><b>{about}.</b> {text}</figcaption></figure>'


def _mapping(values: dict[str, Any]) -> str:
    return pd.Series(values, dtype=object).to_frame("").to_html(header=False, border=0, escape=True)


def _fidelity(config: dict[str, Any]) -> str:
    """What the paper leaves open, beside what these runs did."""
    rows = [(question, said, str(config[key])) for question, said, key in FIDELITY if config.get(key) not in (None, "")]
    return pd.DataFrame([*rows, ESTIMATOR], columns=["question", "the paper", "here"]).to_html(index=False, border=0)


def _settings(folder: Path) -> list[tuple[str, str]]:
    """Settings and versions of each table of a run, and what the paper leaves open, from the tables' provenance."""
    paths = sorted(path for path in folder.glob("*.parquet") if path.stem.count(".") == 0)
    settings, rows = {}, []
    for path in paths:
        provenance, first = table.provenance(path), table.read(path).iloc[0]
        settings[path.stem] = {key: value for key, value in provenance["settings"].items() if key != "checkpoints"}
        checkpoints = ", ".join(f"{c['run']} (step {c['step']}, {c['sha'][:12]})" for c in provenance["checkpoints"])
        rows.append((path.stem, checkpoints, first["weights"], first["gsnr_version"], first["torch_version"], provenance["created"]))
    what = pd.DataFrame(rows, columns=["probe", "checkpoints (SHA-256)", "weights", "gsnr", "torch", "measured"])
    config = {
        str(key): value for key, value in pd.json_normalize(table.provenance(paths[0])["checkpoints"][0]["config"]).astype(object).iloc[0].items()
    }
    same = pd.DataFrame(settings).dropna(how="all")
    return [
        ("Provenance", what.to_html(index=False, border=0)),
        ("Settings of the probes", same.to_html(border=0)),
        ("What the paper leaves open", _fidelity(config)),
        ("Configuration of the run", f"<details><summary>{len(config)} options</summary>{_mapping(config)}</details>"),
    ]


def _figures(runs: list[Path]) -> list[tuple[str, str]]:
    """Every figure that the tables of one run, or of several together, allow; one that cannot be drawn says why."""
    found = []
    for name in tqdm(drawing.names(), desc="drawing", unit="figure", leave=False, delay=2, disable=None):
        figure = drawing.find(name)
        if not (those := drawing.having(runs, figure)):
            continue
        try:
            found.append((name, _picture(figure.draw(drawing.table_of(those, figure)), figure.TITLE, figure.CAPTION)))
        except ValueError as error:
            found.append((name, f"<p>not drawn: {jinja2.filters.escape(str(error))}</p>"))
    return found


def _tables(folder: Path) -> list[tuple[str, str]]:
    found = []
    for probe in tables.PROBES:
        if not (folder / f"{probe}.parquet").is_file():
            continue
        title, averages = tables.measured(folder, probe, "all")
        found.append((f"Probe {probe}: {title}", tables.readable(averages).to_html(index=False, border=0)))
    return found


def sections(runs: list[Path]) -> list[Section]:
    """Raises ValueError for a run without tables."""
    made = []
    for folder in runs:
        if not any(drawing.tables_in(folder).glob("*.parquet")):
            raise ValueError(f"{drawing.tables_in(folder)}: no tables; measure first with `gsnr probe --ckpt {folder}`")
    if len(runs) > 1 and (compared := _figures(runs)):
        made.append(Section("All runs", compared))
    for folder in runs:
        found = drawing.tables_in(folder)
        parts = [*_figures([folder]), *_tables(found), *_settings(found)]
        made.append(Section(folder.resolve().name, parts))
    return made


PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h2 { border-bottom: 2px solid #0072B2; margin-top: 3rem; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #444; font-size: .9rem; }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
nav a { margin-right: 1rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>G-SNR = ||E g||² / tr Cov(g) of the per-sample gradient of one loss. At a perfectly learnt target it is 0, and a wrong target can score high:
read a target against its controls, and rank targets only with projectors fitted alike on a backbone that none of them trained.</p>
<nav>{% for s in sections %}<a href="#s{{ loop.index }}">{{ s.title }}</a>{% endfor %}</nav>
{% for s in sections %}<section id="s{{ loop.index }}">
<h2>{{ s.title }}</h2>
{% for heading, body in s.parts %}<h3>{{ heading }}</h3>
{{ body | safe }}
{% endfor %}</section>
{% endfor %}</body>
</html>
""",
    autoescape=True,
)


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr report", __doc__)
    parser.add_runs()
    parser.add_argument("--out", type=a_path, metavar="FILE", help="page to write (default: figures/report.html in the first run)")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    runs: list[Path] = args.run
    drawing.distinct(runs)
    out: Path = args.out or runs[0] / "figures" / "report.html"
    files.check_output(out, "--out", ".html")
    made = sections(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, PAGE.render(title=f"G-SNR report: {', '.join(folder.resolve().name for folder in runs)}", sections=made))
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    commands.run("report")
