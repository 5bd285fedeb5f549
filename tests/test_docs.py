"""What README and the pages under docs/ hold to: short sentences, commands and files that exist, examples that run, every public name documented.

`make docs` builds the site strictly, which finds links between its pages that lead nowhere; here are those of the files that are no pages of it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import gsnr
from gsnr import plugins
from gsnr.commands import COMMANDS
from gsnr.declared import declared, file_of
from tests.conftest import REPO
from tests.pages import first_column

PAGES = sorted((REPO / "docs").rglob("*.md"))
ROOT = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
README = (REPO / "README.md").read_text()
LONGEST_SENTENCE = 40  # words
LONGEST_README = 900
ABBREVIATIONS = r"\b(Figs?|Secs?|Eqs?|App|Tables?|al|vs|cf|Nos?)\."
BEGINS = r" *([*+-]|\d+\.|#+) "  # of a list's item or a heading
LINK = r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)"


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, list items and headings, each on one line; no code, tables, pictures or directives of mkdocstrings."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    gathered: list[str] = []
    code = False  # an indented block goes on until a line is indented less
    before = ""
    for line in [*text.splitlines(), ""]:
        code = line.startswith("    ") and (code or not before.strip() or before.startswith(":::"))
        skipped = code or line.lstrip().startswith(("|", ":::", "<!--", "![")) or not line.strip()
        if gathered and (skipped or before.startswith("#") or re.match(BEGINS, line)):
            yield " ".join(gathered)
            gathered = []
        if not skipped:
            gathered.append(re.sub(f"^{BEGINS}", "", line).strip())
        before = line


def words(text: str) -> int:
    """Code between backticks counts as one word."""
    return sum(any(c.isalnum() for c in word) for word in text.split())


def sentences(text: str) -> Iterator[str]:
    for block in blocks(text):
        plain = re.sub(LINK, r"\1", re.sub(r"`[^`]+`", "Code", block))
        plain = re.sub(ABBREVIATIONS, r"\1", plain)
        yield from re.split(r"(?<=[.!?])[\"')*_]*\s+(?=[^a-z])", plain)


each_page = pytest.mark.parametrize("path", [*PAGES, *ROOT], ids=lambda path: str(path.relative_to(REPO)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two (see Fig. 4). three goes on: and on; yes.", ["One.", "Two (see Fig 4). three goes on: and on; yes."]),
        ("A `b. C` d,\nend.\n\n    code. Code.\n\n* item. Next\n  line\n* item\n", ["A Code d, end.", "item.", "Next line", "item"]),
        ("| a. B |\n|---|\n\n# Head\nBody [text](url.html).\n\n```python\nx. Y\n```\n", ["Head", "Body text."]),
        ("::: gsnr.measure\n    options: {a: b}\n\nText.\n", ["Text."]),
    ],
)
def test_sentences_are_found(text: str, found: list[str]) -> None:
    assert list(sentences(text)) == found


@each_page
def test_sentences_are_short(path: Path) -> None:
    long = [f"{words(s)} words: {s}" for s in sentences(path.read_text()) if words(s) > LONGEST_SENTENCE]
    assert not long, "\n".join(long)


@each_page
def test_lines_of_prose_are_short(path: Path) -> None:
    for block in re.split(r"\n\s*\n", re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.M | re.S)):
        for line in [] if re.match(r" {4}|\||<|#|!\[", block) else block.splitlines():
            assert len(line) <= 120 or line.lstrip().startswith(("|", "![")) or "](" in line.split()[-1], line


def test_the_readme_is_read_in_minutes() -> None:
    assert len(README.split()) < LONGEST_README  # code, tables and all


def test_links_from_files_that_are_no_pages() -> None:
    for path in [*ROOT, REPO / "CHANGELOG.md"]:
        for _, target in re.findall(LINK, path.read_text()):
            name, _, anchor = target.partition("#")
            if re.match(r"https?:|\.\./\.\./actions/", target):
                continue  # the latter are the badges', by the address that GitHub gives the README
            assert (path.parent / name).is_file(), f"{path.name}: {target}"
            headings = re.findall(r"^#+ (.+)$", (path.parent / name).read_text(), re.M) if anchor else []
            assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings], target


def code_in(text: str) -> list[str]:
    """Lines of indented code, those that a backslash continues as one, and what stands between backticks."""
    return ["".join(found) for found in re.findall(r"^ {4,}(.*)|`([^`\n]+)`", re.sub(r"\\\n\s*", " ", text), re.M)]


@each_page
def test_commands_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every `make target`, `python -m module`, `gsnr command` and each of its flags."""
    text = path.read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", (REPO / "Makefile").read_text(), re.M))
    code = "\n".join(code_in(text))
    assert set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b", code)) <= targets
    for module in set(re.findall(r"-m ((?:train|tests|figures|gsnr)(?:\.\w+)*)\b", code)):
        place = REPO / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
    for name, rest in re.findall(r"^(?:torchrun .* -m |\S+/)?gsnr ([a-z][a-z-]*)\b(.*)$", code, re.M):
        assert name in COMMANDS, name
        helped = help_of(name, capsys) + (help_of("train", capsys) if name == "loader" else "")  # which takes the trainer's options, too
        for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", rest.split(" #")[0]):
            assert re.search(rf"{re.escape(flag)}(?![\w.-])", helped), f"gsnr {name} has no {flag}"


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        declared(file_of(COMMANDS[name].module), "_parser")().parse_args(["--help"])
    return capsys.readouterr().out + "--help --plugins"


@each_page
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:gsnr|train|probes|figures|tests|docs|analysis_notebooks|\.ci)/[\w/.-]*)`", path.read_text()):
        assert (REPO / name).exists(), name


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_examples_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (REPO / page).read_text(), re.S)
    exec(re.sub(r"^print\(gsnr\.check.*", "", code, flags=re.M), {})  # which has tests of its own, and takes seconds
    assert "last layer  256" in capsys.readouterr().out
    assert page != "README.md" or len(code.strip().splitlines()) == 10


def test_every_public_name_has_its_place_in_the_api() -> None:
    text = "".join(path.read_text() for path in (REPO / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)", text, re.M))
    assert {f"gsnr.{name}" for name in gsnr.__all__ if name != "__version__"} <= shown
    assert {"gsnr.table", "gsnr.estimates", "gsnr.intervals", "gsnr.comparison"} <= shown  # what gsnr's docstring calls importable without torch
    kinds = ("alignments", "schedules", "routers", "projectors", "vaes", "samplers")
    assert {"gsnr.probes", "gsnr.figures", *(f"gsnr.train.{kind}" for kind in kinds)} <= shown


def test_docstrings_in_columns_become_lists() -> None:
    """docs/docstrings.py turns the plain text of docstrings into Markdown; mkdocstrings brings griffe."""
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docstrings", REPO / "docs" / "docstrings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.markdown("Of <a, b> and `x < y`.\n\nGiven:\nname   what [it]\n       is\n\n    U = a * b") == (
        "Of &lt;a, b> and `x < y`.\n\nGiven:\n\n* `name`: what \\[it\\]\n  is\n\n```text\n    U = a * b\n```"
    )


def test_tables_name_every_method_and_probe() -> None:
    page = (REPO / "docs" / "methods.md").read_text()
    assert sorted(first_column(page, "`--alignment`")) == sorted(first_column(README, "`--alignment`")) == sorted(plugins.names("alignments"))
    assert sorted(first_column((REPO / "docs" / "probing.md").read_text(), "probe")) == sorted(plugins.names("probes"))
    assert sorted(first_column((REPO / "docs" / "sampling.md").read_text(), "`--sampler`")) == sorted(plugins.names("samplers"))
    for kind in ("router", "projector"):
        (values,) = re.findall(rf"^\| `--alignment\.{kind}` \| (.*) \|$", page, re.M)
        assert set(plugins.names(f"{kind}s")) <= set(re.findall(r"\w+", values)), kind


def test_taps_in_the_table_are_those_of_the_methods() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (\d+), (\d+), (\d+) \|", (REPO / "docs" / "methods.md").read_text(), re.M)
    assert {name for name, *_ in rows} == {
        "ahpa",
        "repa",
        "irepa",
        "sra",
        "sra2",
        "layersync",
        "gram",
        "spare",
        "disperse",
        "attention",
        "rare",
        "dupa",
        "pooled",
        "repi",
    }
    for name, *taps in rows:
        assert [plugins.find("alignments", name).Config.default_tap(depth) for depth in (12, 24, 28)] == [int(tap) for tap in taps], name


def test_versions_agree() -> None:
    assert yaml.safe_load((REPO / "CITATION.cff").read_text())["version"] == gsnr.__version__


def test_others_call_what_ci_calls() -> None:
    """The gate is .ci/run; hooks and workflows add nothing to it and leave nothing out."""
    gate = set(re.findall(r"^make \w+$", (REPO / ".ci" / "run").read_text(), re.M))
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["entry"] for repo in hooks for hook in repo["hooks"]} == gate == {"make check", "make docs", "make test"}
    run = lambda name: re.findall(r"run: (.+)", (REPO / ".github" / "workflows" / name).read_text())
    assert run("ci.yml") == ["bash .ci/run"] and run("docs.yml") == ["make docs"]


def test_the_site_asks_nobody_for_anything() -> None:
    """No fonts or scripts from elsewhere; `make docs` looks through what was built."""
    text = (REPO / "mkdocs.yml").read_text()
    assert "font: false" in text and "strict: true" in text and "https://" not in text
    assert (REPO / "docs" / "assets" / "iframe-worker.js").is_file()
    assert "mkdocs build --strict\n" in (REPO / "Makefile").read_text()  # with --quiet, too, it would count no warnings
