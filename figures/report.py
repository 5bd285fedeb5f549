"""`gsnr report`: everything that was measured of some runs, on one HTML page that needs no network.

    gsnr report --run runs/demo                                      into runs/demo/figures/report.html
    gsnr report --run runs/figures/sit --run runs/demo --out report.html

The page begins with the verdict on each run: what its gradients let one say. Figures that compare runs come next. Then, for each run: its
samples and losses; every figure that its tables allow, with its caption; the tables of `figures.tables`; what was measured, with which settings
and versions; what the paper leaves open and how this run chose. A click on a table's heading sorts it, and a link below saves it as CSV.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from gsnr import commands, files
from gsnr.commandline import Parser, a_path
from gsnr.figures import command as drawing
from gsnr.figures import tables
from gsnr.figures.page.judgement import READING, judgement
from gsnr.figures.page.layout import Part, Section, page, paragraphs
from gsnr.figures.page.listing import listing
from gsnr.figures.page.pictures import drawn
from gsnr.figures.page.provenance import provenance
from gsnr.figures.page.training import losses, samples


def _figures(runs: list[Path]) -> list[Part]:
    """Every figure that the tables of one run, or of several together, allow; one that cannot be drawn says why."""
    found = []
    for name in tqdm(drawing.names(), desc="drawing", unit="figure", leave=False, delay=2, disable=None):
        figure = drawing.find(name)
        if not (those := drawing.having(runs, figure)):
            continue
        try:
            body = drawn(figure.draw(drawing.table_of(those, figure)), figure.TITLE, f"{figure.CAPTION} ({name})")
        except ValueError as error:
            body = paragraphs(f"not drawn: {error}")
        found.append(Part(figure.TITLE, body))
    return found


def _tables(folder: Path, run: str) -> list[Part]:
    found = []
    for probe in tables.PROBES:
        if (folder / f"{probe}.parquet").is_file():
            title, averages = tables.measured(folder, probe, "all")
            body = paragraphs(title) + listing(tables.readable(averages), f"{run} {probe}", averages)
            found.append(Part(f"Averages over t: {probe}", body))
    return found


def sections(runs: list[Path]) -> list[Section]:
    """Raises ValueError for a run without tables."""
    names = {folder: folder.resolve().name for folder in runs}
    for folder in runs:
        if not any(drawing.tables_in(folder).glob("*.parquet")):
            raise ValueError(f"{drawing.tables_in(folder)}: no tables; measure first with `gsnr probe --ckpt {folder}`")
    said = [part for folder in runs for part in judgement(drawing.tables_in(folder), names[folder])]
    made = [Section("Verdict", (*said, Part("How to read all of this", paragraphs(READING))))]
    if len(runs) > 1 and (compared := _figures(runs)):
        made.append(Section("All runs", tuple(compared)))
    for folder in runs:
        found, name = drawing.tables_in(folder), names[folder]
        parts = (*samples(folder), *losses(folder), *_figures([folder]), *_tables(found, name), *provenance(found, name))
        made.append(Section(name, parts))
    return made


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
    files.write_text(out, page(f"G-SNR report: {', '.join(folder.resolve().name for folder in runs)}", made))
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    commands.run("report")
