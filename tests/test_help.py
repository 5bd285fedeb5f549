"""--help of every command, from the sources alone: what it says, and that it imports nothing heavy. And what may have been meant."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

import pytest

from gsnr import options, plugins
from gsnr.commandline import meant
from gsnr.commands import COMMANDS, main
from gsnr.declared import declared, file_of
from tests.conftest import REPO

HEAVY = {"torch", "diffusers", "transformers", "sklearn", "accelerate", "matplotlib", "pandas", "scipy"}
IMPORTED = """
import sys
from gsnr.commands import run
try:
    run(sys.argv[1], sys.argv[2:])
except SystemExit as end:
    assert not end.code
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def ours(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gsnr", *words], cwd=REPO, capture_output=True, text=True)


@pytest.mark.parametrize("words", [(name, "--help") for name in COMMANDS] + [("train", "--list-presets"), ("train", "--preset", "repa-b2", "--help")])
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED, *words], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stderr.split())
    assert len(done.stdout.splitlines()) > 8


@pytest.mark.parametrize("name", COMMANDS)
def test_the_parser_from_the_source_is_that_of_the_module(name: str) -> None:
    command = COMMANDS[name]
    parsers = declared(file_of(command.module), "_parser")(), import_module(command.module)._parser()
    assert parsers[0].format_help() == parsers[1].format_help()
    assert parsers[0].prog == f"gsnr {name}"


@pytest.mark.parametrize("name", plugins.names("alignments"))
def test_options_from_the_source_are_those_of_the_module(name: str) -> None:
    plugin = plugins.get("alignments", name)
    seen, real = declared(plugin.path, "Config"), plugin.load().Config
    assert [(f.name, f.type, f.default, dict(f.metadata)) for f in fields(seen)] == [
        (f.name, f.type, f.default, dict(f.metadata)) for f in fields(real)
    ]


def test_declared_runs_what_is_asked_for_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import json as j\nfrom dataclasses import dataclass\nfrom gsnr.options import option\n"
        "raise_now = 1 / 0\nLOW, HIGH = 1, 2\nNAMES = ('x', 'y')\n"
        "def twice(n: Missing) -> Missing:\n    return n * HIGH\n"
        "@dataclass(frozen=True)\nclass Base:\n    a: Missing = option(NAMES[0], 'which', NAMES)\n"
        "@dataclass(frozen=True)\nclass Options(Base):\n    b: int = option(twice(LOW), 'how many', low=LOW)\n"
        "    def run(self):\n        return j.dumps(unknown)\n"
    )
    cls = declared(tmp_path / "a.py", "Options")
    assert (cls().a, cls().b) == ("x", 2)
    assert options.help_lines(cls, "p.", "me") == [
        "  --p.a                          which: x, y [x] (me)",
        "  --p.b                          how many: at least 1 [2] (me)",
    ]
    with pytest.raises(NameError, match="unknown"):
        cls().run()
    with pytest.raises(ValueError, match=r"a\.py: defines no 'Other' at its top"):
        declared(tmp_path / "a.py", "Other")
    with pytest.raises(ZeroDivisionError):
        declared(tmp_path / "a.py", "raise_now")


def test_train_help_lists_every_option_once() -> None:
    lines = [line.split()[0] for line in ours("train", "--help").stdout.splitlines() if line.startswith("  --")]
    assert len(set(lines)) == len(lines)
    assert {"--steps", "--seed", "--optim.lr", "--data.path", "--alignment", "--alignment.weight", "--alignment.t-encoding"} <= set(lines)


def test_help_of_a_preset_shows_its_values() -> None:
    shown = {
        line.split()[0]: line.rpartition("[")[2].rstrip("]") for line in ours("train", "--preset", "repa-demo", "--help").stdout.splitlines() if line
    }
    from gsnr.train import presets
    from gsnr.train.config import resolve

    config = resolve(presets.find("repa-demo"))
    assert float(shown["--optim.lr"]) == config.optim.lr and int(shown["--model.depth"]) == config.model.depth
    assert shown["--data.path"] == "demo" and int(shown["--steps"]) == config.steps
    for key, value in config.alignment.items():
        if key != "name":
            assert shown[f"--alignment.{key.replace('_', '-')}"] == (str(value).lower() if isinstance(value, bool) else str(value))
    assert "--alignment.source" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "gsnr trian: no such command; did you mean train?"),
        ("train --preset dmeo --out x", "preset 'dmeo' does not exist; did you mean demo?"),
        ("train --preset demo --lr 1e-3 --out x", "unknown option 'lr'; did you mean --optim.lr?"),
        ("train --preset demo --optim.wd 1 --out x", "unknown option 'optim.wd'; optim has beta1, beta2, clip"),
        ("train --preset demo --weigth-decay 1 --out x", "unknown option 'weigth_decay'; did you mean --optim.weight-decay?"),
        ("train --preset demo --otu x", "unknown option 'otu'; did you mean --out?"),
        ("train --preset demo --precision bf6 --out x", "precision 'bf6' does not exist; choose from ... (did you mean bf16?)"),
        ("train --preset demo --alignment rpea --out x", "alignment 'rpea' does not exist; choose from ... (did you mean repa?)"),
        ("train --preset demo --stop-rule.fall 1 --out x", "--stop-rule.fall: is an option of plateau, not of 'none'; name one of ..."),
        ("train --preset demo --gsnr-bins 8 --out x", "--gsnr-bins: changes nothing without --gsnr-every"),
        ("train --preset demo --class-token-weight 1 --out x", "--class-token-weight: changes nothing without --model.extra-token"),
        ("loader --optm.lr 1", "unknown option 'optm.lr'; did you mean --optim.lr?"),
        ("grid --out x --rows ahpaa", "--rows 'ahpaa' does not exist; choose from ... (did you mean ahpa?)"),
        ("cost --precision bf61", "--precision 'bf61' does not exist; choose from ... (did you mean bf16?)"),
        ("sample --ckp x --ckpt y", "unrecognized arguments: --ckp x; did you mean --ckpt?"),
        ("bench --methods gost", "--methods 'gost' does not exist; choose from ... (did you mean ghost?)"),
        ("coverage --only clam", "--only 'clam' does not exist; choose from ... (did you mean claim?)"),
        ("figures --run . --figure fig5_ruter", "figure 'fig5_ruter' does not exist; choose from ... (did you mean fig5_router?)"),
    ],
)
def test_what_was_meant(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gsnr", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and all(part in said for part in message.split("...")) and len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_plugins_of_ones_own_are_in_the_help(tmp_path: Path) -> None:
    source = (REPO / "train" / "alignments" / "repa.py").read_text().replace("projector_width: int", "my_width: int")
    (tmp_path / "mine.py").write_text(source)
    said = ours("train", "--plugins", str(tmp_path), "--alignment", "mine", "--help").stdout
    assert "--alignment.my-width " in said and "--alignment mine; its options" in said
    done = ours("train", "--plugins", "nowhere", "--help")
    assert (done.returncode, done.stderr) == (2, "error: --plugins nowhere: no such file or folder\n")


def test_near_names() -> None:
    known = ["optim.lr", "optim.weight_decay", "data.path", "model.depth", "alignment.router_depth"]
    assert meant("lr", known) == meant("optm.lr", known) == ["optim.lr"]
    assert meant("optim.wd", known) == meant("nothing", known) == []
    assert meant("dpeth", known) == ["model.depth"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_broken_pipe_is_quiet(unbuffered: str) -> None:
    command = f"set -o pipefail; {sys.executable} -m gsnr train --list-presets | head -1"
    env = {"PYTHONUNBUFFERED": unbuffered, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", command], cwd=REPO, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("ROW")
    command = f"{sys.executable} -m gsnr train --help | (exec 0<&-; sleep 1); exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=REPO, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize(
    ("blocked", "words", "message"),
    [
        ("matplotlib", "figures --run x", "gsnr figures needs the package 'matplotlib', which is not installed: pip install 'gsnr[figures]'"),
        ("jinja2", "report --run x", "gsnr report needs the package 'jinja2', which is not installed: pip install 'gsnr[figures]'"),
        ("diffusers", "sample --ckpt x", "gsnr sample needs the package 'diffusers', which is not installed: pip install 'gsnr[train]'"),
        (
            "accelerate",
            "train --preset smoke --out x",
            "gsnr train needs the package 'accelerate', which is not installed: pip install 'gsnr[train]'",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(blocked: str, words: str, message: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); sys.modules[{blocked!r}] = None; from gsnr.commands import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"error: {message}\n"


def test_booleans_are_flags_or_said() -> None:
    from gsnr.train.command import overrides

    assert overrides(["--compile", "--batch", "8"]) == {"compile": "true", "batch": "8"}
    assert overrides(["--checkpointing", "false", "--compile"]) == {"checkpointing": "false", "compile": "true"}
    assert overrides(["--data", "demo", "--alignment=none"]) == {"data.path": "demo", "alignment": "none"}
    with pytest.raises(ValueError, match="--batch needs a value"):
        overrides(["--batch"])


def test_every_option_is_a_flag_without_a_preset() -> None:
    from gsnr.train.command import overrides
    from gsnr.train.config import TrainConfig, nest, resolve

    assert resolve({}, nest(overrides(["--data", "demo"]))).data.path == "demo"

    @dataclass(frozen=True)
    class Section:
        parts: tuple[dict, ...] = options.option(({"a": 1},), "as JSON")

    assert options.help_lines(Section) == ['  --parts                        as JSON [[{"a": 1}]]']
    for name, kind in options.kinds(TrainConfig).items():
        if kind == "bool":
            assert overrides([f"--{name}"]) == {name: "true"}
        else:
            assert overrides([f"--{name}", json.dumps(1)]) == {name: "1"}
