"""The report: one page, self-contained, with every figure and table that the runs allow; rendered by a browser where one is installed."""

from __future__ import annotations

import base64
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gsnr import table
from gsnr.figures import command as drawing
from gsnr.figures import report
from tests.conftest import call

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
)


class Page(HTMLParser):
    """The addresses, headings and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


@pytest.fixture(scope="module")
def page(probed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "new" / "report.html"
    assert call(report.main, "--run", probed_run, "--out", out) == 0
    return out


def test_it_is_self_contained_and_complete(page: Path, probed_run: Path) -> None:
    text = page.read_text()
    read = Page(text)
    assert all(address.startswith(("data:", "#")) for address in read.addresses), "nothing comes from a network"
    assert not {"script", "iframe", "object"} & set(read.tags)
    drawn = [name for name in drawing.names() if drawing.having([probed_run], drawing.find(name))]
    pictures = [address for address in read.addresses if address.startswith("data:image/png")]
    assert len(pictures) == len(drawn) >= 7
    for address in pictures:
        assert base64.b64decode(address.partition(",")[2]).startswith(b"\x89PNG")
    assert all(f"<h3>{name}</h3>" in text for name in drawn)
    provenance = table.provenance(probed_run / "probes" / "alignment.parquet")
    for said in (provenance["checkpoints"][0]["sha"][:12], "fit_samples", "adaptive pooling (Sec. 4.2)", "AHPA, shuffled", "optim.lr"):
        assert said in text


def test_it_leaves_nothing_on_the_terminal(probed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Bars as wide as the names of all runs wrapped, and stayed."""
    assert call(report.main, "--run", probed_run, "--out", tmp_path / "r.html") == 0
    assert capsys.readouterr() == (f"wrote {tmp_path / 'r.html'}\n", "")


def test_several_runs(probed_run: Path, tmp_path: Path) -> None:
    """The page lies in the first of them; one table a run is enough for the order of its sections."""
    runs = [tmp_path / "smoke", tmp_path / "other"]
    for run in runs:
        (run / "probes").mkdir(parents=True)
        shutil.copy(probed_run / "probes" / "router.parquet", run / "probes")
    assert call(report.main, "--run", runs[0], "--run", runs[1]) == 0
    text = (runs[0] / "figures" / "report.html").read_text()
    assert text.index("All runs") < text.index("fig_beta") < text.index("<h2>smoke</h2>") < text.index("<h2>other</h2>")


def test_bad_input(smoke_run: Path, probed_run: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--run", tmp_path), "no tables; measure first with `gsnr probe --ckpt"),
        (("--run", probed_run, "--run", probed_run), "two of the folders are called 'smoke'"),
        (("--run", probed_run, "--out", tmp_path), "name a file that ends in .html"),
    ):
        with pytest.raises(ValueError, match=message):
            call(report.main, *words)
    assert not list(tmp_path.iterdir())


def test_a_browser_renders_it_without_errors(page: Path, tmp_path: Path) -> None:
    """In headless Chromium, offline: every picture is decoded, and the console stays empty."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    checked = tmp_path / "checked.html"
    script = (
        "<script>addEventListener('load', () => { const all = [...document.images];"
        " document.title = all.length + ' pictures, ' + all.filter(i => i.complete && i.naturalWidth > 100).length + ' decoded'; });</script>"
    )
    checked.write_text(page.read_text().replace("</body>", script + "</body>"))
    words = [browser, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", f"file://{checked}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    pictures = done.stdout.count("<img ")
    assert pictures >= 7 and f"<title>{pictures} pictures, {pictures} decoded</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
