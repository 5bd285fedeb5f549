"""The report: one page, self-contained, verdict first, with every figure and table that the runs allow; used by a browser where one is installed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from gsnr import table, verdicts
from gsnr.figures import command as drawing
from gsnr.figures import report
from gsnr.figures.page import training
from gsnr.figures.page.hover import MOST, marks
from gsnr.figures.page.listing import listing
from tests.conftest import call

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
)
WIDTHS = (1280, 390)
HOSTILE = """<img src=x onerror=alert(1)> "'&<script>"""


class Page(HTMLParser):
    """The addresses, tags and images of a page, and what its tables hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.images.append(dict(attrs))
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("h2", "h3") and data.strip():
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(probed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bars as wide as the names of all runs wrapped, and stayed: what is on the terminal in the end is one line."""
    out = tmp_path_factory.mktemp("report") / "new" / "report.html"
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        assert call(report.main, "--run", probed_run, "--out", out) == 0
    assert printed.getvalue() == f"wrote {out}\n"
    return out


def test_it_is_self_contained_and_complete(page: Path, probed_run: Path) -> None:
    text = page.read_text()
    read = Page(text)
    assert all(address.startswith(("data:", "#")) for address in read.addresses), "nothing comes from a network"
    assert not {"iframe", "object", "embed"} & set(read.tags)
    names = [name for name in drawing.names() if name != "fig_routes"]  # of routed models alone
    drawn = [drawing.find(name) for name in names if drawing.having([probed_run], drawing.find(name))]
    assert len(drawn) >= 7
    assert {figure.TITLE for figure in drawn} <= {image["alt"] for image in read.images}
    for image in read.images:
        assert image["alt"] and image["src"].startswith("data:image/webp;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).format == "WEBP"
    provenance = table.provenance(probed_run / "probes" / "alignment.parquet")
    sha = provenance["checkpoints"][0]["sha"][:12]
    settled = ("adaptive pooling (Sec. 4.2)", "as the cache groups its layers", "optim.lr")
    for said in (sha, "fit_samples", *settled, "AHPA, shuffled", 'class="plot wide"'):
        assert said in text


def test_its_policy_lets_its_own_script_run_and_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script") == 1
    script = text.partition("<script>")[2].partition("</script>")[0]
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{hashed}'" in text


def test_it_begins_with_contents_and_verdict(page: Path, probed_run: Path) -> None:
    text = html.unescape(page.read_text())
    cells, metrics = (table.read(probed_run / "probes" / f"alignment{kind}.parquet") for kind in ("", ".metrics"))
    said = verdicts.verdict(cells, metrics)
    places = [text.index(part) for part in (*said.sentences, verdicts.CAVEAT, said.title[1:])]
    assert [text.index("<nav"), *places] == sorted([text.index("<nav"), *places])
    headings = Page(page.read_text()).headings
    order = ["Verdict", "smoke", "Losses", drawing.find("fig2_gsnr").TITLE, "Averages over t: alignment", "Provenance"]
    assert [headings.index(one) for one in order] == sorted(headings.index(one) for one in order)
    assert text.index("<h2>Verdict</h2>") < text.index("<img")
    assert all(f'href="#{name}"' in text for name in ("s1", "s2", "s2-1"))


def test_several_runs(probed_run: Path, tmp_path: Path) -> None:
    """The page lies in the first of them; one table a run is enough for the order of its sections."""
    runs = [tmp_path / "smoke", tmp_path / "other"]
    for run in runs:
        (run / "probes").mkdir(parents=True)
        shutil.copy(probed_run / "probes" / "router.parquet", run / "probes")
    assert call(report.main, "--run", runs[0], "--run", runs[1]) == 0
    headings = Page((runs[0] / "figures" / "report.html").read_text()).headings
    assert [one for one in headings if one in ("All runs", drawing.find("fig_beta").TITLE, "smoke", "other")] == [
        "All runs",
        drawing.find("fig_beta").TITLE,
        "smoke",
        "other",
    ]


def test_a_hostile_run(probed_run: Path, tmp_path: Path) -> None:
    """Its name, its log and its samples are somebody else's: they are text, or it is said what is wrong with them."""
    run = tmp_path / HOSTILE.replace("/", "")
    (run / "probes").mkdir(parents=True)
    shutil.copy(probed_run / "probes" / "router.parquet", run / "probes")
    (run / "samples").mkdir()
    (run / "samples" / "1.png").write_bytes(b"<script>alert(1)</script>")
    (run / training.LOG).write_text('{"step": 1, "loss": 2}\n{"step": 1e999, "loss": 1}\n[]\n{"step": "<b>", "loss": 1}\n' + "[" * 100_000)
    assert call(report.main, "--run", run, "--out", tmp_path / "report.html") == 0
    text = (tmp_path / "report.html").read_text()
    read = Page(text)
    assert not any(address == "x" for address in read.addresses) and read.tags.count("script") == 1
    assert html.escape(run.name, quote=False).split(" ")[0] in text
    assert "1.png: cannot be shown" in text and "4 damaged lines are left out" in text


def test_bad_input(smoke_run: Path, probed_run: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--run", tmp_path), "no tables; measure first with `gsnr probe --ckpt"),
        (("--run", probed_run, "--run", probed_run), "two of the folders are called 'smoke'"),
        (("--run", probed_run, "--out", tmp_path), "name a file that ends in .html"),
    ):
        with pytest.raises(ValueError, match=message):
            call(report.main, *words)
    assert not list(tmp_path.iterdir())


def test_a_listing_shows_rounded_numbers_and_saves_exact_ones() -> None:
    frame = pd.DataFrame({HOSTILE: ["a", HOSTILE], "x": [1 / 3, np.nan], "y": ["1.5 [1, 2]", ""], "sure": [True, False]})
    text = str(listing(frame, "a/b"))
    assert "<script" not in text and "<img" not in text
    assert '<td class="n" title="0.3333333333333333">0.3333</td>' in text.replace("\n", "") and '<td class="n">1.5 [1, 2]</td>' in text
    assert 'download="a-b.csv"' in text
    saved = pd.read_csv(io.BytesIO(base64.b64decode(text.partition("data:text/csv;base64,")[2].partition('"')[0])))
    pd.testing.assert_frame_equal(saved, frame.replace({"": np.nan}))


def test_values_stand_where_they_are_drawn() -> None:
    """Axes that fill a figure of 4 x 2 inches, from (0, 0) to (1, 1): a point's mark is at its share of them."""
    figure = Figure(figsize=(4, 2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
    axes.errorbar([0.25, 0.5], [0.5, 0.75], yerr=[0.1, 0.2], label=r"$\beta$ of A")
    axes.plot([0.5], [0.5], label="_hidden")
    axes.pcolormesh([0.5, 1.0], [0.0, 0.5], [[7.0]])
    first, second, cell = marks(figure)
    assert (first.text, second.text) == ("beta of A: 0.25, 0.5 [0.4, 0.6]", "beta of A: 0.5, 0.75 [0.55, 0.95]")
    np.testing.assert_allclose((first.x + first.width / 2, first.y + first.height / 2), (1.0, 1.0))
    np.testing.assert_allclose((second.x + second.width / 2, second.y + second.height / 2), (2.0, 1.5))
    np.testing.assert_allclose((cell.x, cell.y, cell.width, cell.height), (2.0, 0.0, 2.0, 1.0))
    assert cell.text == "0.75, 0.25: 7"
    axes.pcolormesh(np.zeros((1, MOST)))
    assert marks(figure) == []


# Two frames, as wide as a screen and as a telephone; the page's first table is sorted twice by its first column and once by its second
CHECK = """addEventListener("load", () => { document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.documentElement, all = [...page.images], table = page.querySelector("table");
  const texts = at => [...table.tBodies[0].rows].map(row => row.cells[at].textContent), press = at => table.querySelectorAll("th button")[at].click();
  const sorted = [0, 0, 1].map(at => { press(at); return texts(at); });
  return {wide: root.scrollWidth, seen: root.clientWidth, pictures: all.length, decoded: all.filter(i => i.complete && i.naturalWidth > 100).length,
          sorted, marked: table.querySelectorAll("[aria-sort]").length, box: getComputedStyle(table.parentElement).overflowX}; })); });"""


def test_a_browser_shows_it_without_errors_at_both_widths(page: Path, tmp_path: Path) -> None:
    """In headless Chromium, offline: every picture is decoded, only tables scroll sideways, they sort, and the console stays empty."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    checked = tmp_path / "checked.html"
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{html.escape(page.read_text())}"></iframe>' for width in WIDTHS)
    checked.write_text(f"<!doctype html><body>{frames}<script>{CHECK}</script></body>")
    words = [browser, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", f"file://{checked}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True)
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(done.stdout.partition("<title>")[2].partition("</title>")[0]))
    assert len(found) == len(WIDTHS)
    for width, one in zip(WIDTHS, found, strict=True):
        assert one["wide"] <= one["seen"] <= width, "no sideways scrolling of the page"
        assert one["pictures"] == one["decoded"] >= 8
        assert one["box"] == "auto" and one["marked"] == 1
        up, down, numbers = one["sorted"]
        assert up == sorted(up) and down == sorted(up, reverse=True)
        starts = [float(text.split()[0]) for text in numbers]
        assert starts == sorted(starts)
