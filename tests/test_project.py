"""The house rules that a test can hold: packages in step, nothing that crashes beside the CPU torch, files found by name."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from gsnr.commands import COMMANDS
from tests.conftest import REPO, call

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
CALLED = {"PIL": "pillow", "sklearn": "scikit-learn"}  # import name -> distribution


def requirements(*extras: str) -> set[str]:
    """What `pip install 'gsnr[EXTRAS]'` asks for, extras that name others resolved; without extras, the plain package."""
    found = set(PROJECT["dependencies"])
    for extra in extras:
        for text in PROJECT["optional-dependencies"][extra]:
            inner = re.fullmatch(r"gsnr\[(.+)\]", text)
            found |= requirements(*inner[1].split(",")) if inner else {text}
    return found


ALL = requirements(*PROJECT["optional-dependencies"])


def test_environment_yml_is_in_step_with_pyproject() -> None:
    listed = yaml.safe_load((REPO / "environment.yml").read_text())["dependencies"]
    pip = next(item["pip"] for item in listed if isinstance(item, dict))
    assert set(pip) - {"-e ."} == ALL
    assert f"python{PROJECT['requires-python']}" in listed


def test_constraints_pin_every_package_within_its_range() -> None:
    from packaging.requirements import Requirement

    lines = [line for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line]
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}
    assert pins["torch"] == "2.13.0"
    for text in ALL:
        requirement = Requirement(text)
        pin = pins[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(pin), text


def test_hashes_are_of_the_pinned_versions() -> None:
    """CI installs by .ci/hashes.txt; `make hashes` writes it after a change of constraints.txt. torch's wheel depends on the machine."""
    hashed = re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", (REPO / ".ci" / "hashes.txt").read_text(), re.M)
    pinned = [line.split("==") for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line]
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    assert {plain(name): version for name, version in hashed} == {plain(name): version for name, version in pinned if name != "torch"}


def test_every_import_is_declared() -> None:
    """By the extra of the commands of the folder, as `gsnr/commands.py` names it; gsnr itself by the plain package."""
    extra = {"train": ("train",), "probes": ("probe",), "figures": ("figures",), "gsnr": ()}
    assert {command.extra for command in COMMANDS.values()} == {"", "train", "probe", "figures", "all"}
    for folder, extras in extra.items():
        declared = {re.split(r"[<>=]", text)[0] for text in requirements(*extras)}
        for path in (REPO / folder).rglob("*.py"):
            if folder == "gsnr" and path.relative_to(REPO / folder).parts[0] in extra:
                continue  # a link to another of the folders
            for name in imported(path) - sys.stdlib_module_names - {"gsnr"}:
                assert CALLED.get(name, name) in declared, f"{path} imports {name}"
    assert requirements("all") == requirements("probe", "train", "figures")


def imported(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_nothing_imports_what_crashes_beside_the_cpu_torch() -> None:
    forbidden = {"torchvision", "timm", "torch_fidelity", "cleanfid"}
    for path in [p for folder in ("gsnr", "probes", "train", "figures", "tests") for p in (REPO / folder).rglob("*.py")]:
        assert not imported(path) & forbidden, path


def test_mandated_folders_and_files() -> None:
    for name in ("gsnr", "probes", "analysis_notebooks", "figures", "train", "tests", "environment.yml"):
        assert (REPO / name).exists()
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE", "Makefile", "constraints.txt", ".ci/run"):
        assert (REPO / name).is_file()
    assert set(PROJECT["scripts"]) == {"gsnr", "gsnr-train", "gsnr-probe"}


def test_probes_are_independent_of_one_another_whatever_their_names() -> None:
    """The import-linter contract names probes one by one; this finds them by file."""
    files = [p for p in (REPO / "probes").glob("*.py") if not p.name.startswith("_")]
    for path in files:
        source = path.read_text()
        for other in files:
            assert other == path or not re.search(rf"\bprobes\.{other.stem}\b|from probes import .*\b{other.stem}\b", source)


def test_every_tracked_file_is_small() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, tracked):
        assert (REPO / name).stat().st_size < 4e6, name


def test_the_alignment_in_extending_is_one_file_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is named to the commands as a stranger would, keeps its contract, trains for two steps and is probed."""
    from gsnr import plugin_check, plugins, table
    from gsnr.probes.common.command import main as probe
    from gsnr.train.command import main

    code = re.search(r"```python\n(.*?)```", (REPO / "docs" / "extending.md").read_text(), re.S)
    assert code is not None
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "deep_l1.py").write_text(code[1])
    monkeypatch.setenv(plugins.ENVIRONMENT, str(tmp_path / "plugins"))
    assert call(plugin_check.main, tmp_path / "plugins" / "deep_l1.py") == 0
    words = ("--preset", "smoke", "--alignment", "deep_l1", "--steps", "2", "--log-every", "1", "--out", tmp_path / "run")
    assert call(main, *words) == 0
    words = ("--ckpt", tmp_path / "run", "--probe", "alignment", "--bins", 1, "--n-images", 4, "--fit-samples", 128, "--fit-steps", 3)
    assert call(probe, *words) == 0
    cells = table.read(tmp_path / "run" / "probes" / "alignment.parquet")
    assert {"deep_l1", "uniform_mid", "uniform_deep"} == set(cells["target"])
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["align"] > 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["alignment"] == {
        "name": "deep_l1",
        "tap": 1,
        "weight": 0.5,
        "projector": "conv3x3",
    }


def test_files_and_functions_are_short() -> None:
    """No function over 60 lines, no file over 350, in what is installed."""
    for path in [p for folder in ("gsnr", "probes", "train", "figures") for p in (REPO / folder).rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None and node.end_lineno - node.lineno <= 60, (path, node.name)


def test_tests_share_helpers_in_modules_of_their_own() -> None:
    """No module of tests is imported by another, and none needs a file beside the repository (one that reads one skips without it)."""
    for path in (REPO / "tests").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(?:from|import) tests\S*\.test_|^\s*from tests\S* import .*\btest_", text, re.M), path
        assert "../" + "shared" not in text and "DESIGN" + ".md" not in text, path
