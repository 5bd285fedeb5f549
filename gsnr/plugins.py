"""Plug-ins: one file each, found by its name; there is no list to edit.

A file is of the kind whose marks it defines: `class Alignment`, `Schedule`, `Rule`, `Router`, `Projector`, `VAE` or `Extractor`, functions
`integrate` and `evaluations` (a sampler), `run` and `cannot` (a probe), a function `draw` (a figure), `measure` and `NEEDS` (a metric), or `measure`
and `PASSES` (a criterion). Files are looked for in the kind's own folder, in the files and folders of --plugins ($GSNR_PLUGINS), and behind entry
points of group `gsnr.plugins` (whose values are modules). Files whose name starts with an underscore are not plug-ins. Imports nothing heavy.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from gsnr.commandline import unknown

ENVIRONMENT = "GSNR_PLUGINS"
GROUP = "gsnr.plugins"


@dataclass(frozen=True)
class Kind:
    """package: where ours lie. marks: what a file of this kind defines at its top. contract: the module whose check(name) is its contract test."""

    package: str
    marks: tuple[str, ...]
    contract: str


KINDS = {
    "alignments": Kind("gsnr.train.alignments", ("Alignment",), "gsnr.train.contracts.alignments"),
    "schedules": Kind("gsnr.train.schedules", ("Schedule",), "gsnr.train.contracts.schedules"),
    "routers": Kind("gsnr.train.routers", ("Router",), "gsnr.train.contracts.routers"),
    "projectors": Kind("gsnr.train.projectors", ("Projector",), "gsnr.train.contracts.projectors"),
    "vaes": Kind("gsnr.train.vaes", ("VAE",), "gsnr.train.contracts.vaes"),
    "samplers": Kind("gsnr.train.samplers", ("integrate", "evaluations"), "gsnr.train.contracts.samplers"),
    "probes": Kind("gsnr.probes", ("run", "cannot"), "gsnr.probes.common.contract"),
    "figures": Kind("gsnr.figures", ("draw",), "gsnr.figures.contract"),
    "criteria": Kind("gsnr.probes.criteria", ("measure", "PASSES"), "gsnr.probes.common.criterion_contract"),
    "metrics": Kind("gsnr.train.metrics", ("measure", "NEEDS"), "gsnr.train.contracts.metrics"),
    "extractors": Kind("gsnr.train.extractors", ("Extractor",), "gsnr.train.contracts.extractors"),
    "rules": Kind("gsnr.stopping", ("Rule",), "gsnr.stopping.contract"),
}


@dataclass(frozen=True)
class Plugin:
    """path: its file. module: what it is imported as."""

    kind: str
    name: str
    path: Path
    module: str

    def load(self) -> ModuleType:
        """The module. Raises ValueError naming a file that cannot be imported."""
        if self.module in sys.modules or not self.module.startswith("gsnr_plugins."):
            return import_module(self.module)
        spec = spec_from_file_location(self.module, self.path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[self.module] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[self.module]
            raise ValueError(f"{self.path}: cannot be imported ({type(error).__name__}: {error})") from error
        return module


def add(paths: str) -> None:
    """Also looks for plug-ins in these files and folders (separated as in PATH), here and in processes started from here.

    Raises ValueError for one that is not there."""
    for path in paths.split(os.pathsep):
        if not Path(path).exists():
            raise ValueError(f"--plugins {path}: no such file or folder")
        place = Path(path)
        if not any(kind_of(file) for file in (_files(place) if place.is_dir() else [place])):
            marks = ", ".join(" and ".join(k.marks) for k in KINDS.values())
            raise ValueError(f"--plugins {path}: {'holds no plug-in' if place.is_dir() else 'no plug-in'}; one defines {marks}")
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = os.pathsep.join([*([before] if before else []), *(str(Path(p).absolute()) for p in paths.split(os.pathsep))])


def take(words: list[str]) -> list[str]:
    """The words of a command line without --plugins PATH (as often as it is there), whose plug-ins are found from then on."""
    rest, given = [], iter(words)
    for word in given:
        flag, equals, path = word.partition("=")
        if flag != "--plugins":
            rest.append(word)
            continue
        path = path if equals else next(given, "")
        if not path:
            raise ValueError("--plugins needs a file or folder")
        add(path)
    return rest


@lru_cache(maxsize=4096)
def _marks(path: Path, changed: float) -> frozenset[str]:
    """What a file defines at its top."""
    if not path.is_file():
        raise ValueError(f"{path}: is no regular file")
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a Python file ({error})") from error
    values = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    made = (node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return frozenset([*made, *(target.id for target in values if isinstance(target, ast.Name))])


def kind_of(path: Path) -> str | None:
    """The kind of plug-in that a file is; None for none. Raises ValueError naming a file that is no Python."""
    marks = _marks(path, path.stat().st_mtime)
    return next((kind for kind, k in KINDS.items() if marks.issuperset(k.marks)), None)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_"))


@lru_cache(maxsize=64)
def _ours(kind: str, folder: Path, changed_ns: int) -> tuple[Path, ...]:
    """The files of a kind in a folder of ours, looked through again when one was added or removed; a probe asks some hundred times."""
    return tuple(path for path in _files(folder) if kind_of(path) == kind)


@lru_cache(maxsize=8)
def _offered(places: tuple[str, ...]) -> tuple[tuple[Path, str], ...]:
    """(file, module) of the entry points of what is installed in these places; reading all metadata takes a tenth of a second."""
    found = []
    for point in entry_points(group=GROUP):
        spec = find_spec(point.value)
        if spec is None or spec.origin is None:
            raise ValueError(f"entry point {point.name!r} of {GROUP}: there is no module {point.value!r}")
        found.append((Path(spec.origin), point.value))
    return tuple(found)


def _outside() -> Iterator[tuple[Path, str | None]]:
    """(file, module or None) of every plug-in that lies elsewhere."""
    for text in filter(None, os.environ.get(ENVIRONMENT, "").split(os.pathsep)):
        place = Path(text)
        yield from ((path, None) for path in (_files(place) if place.is_dir() else [place]))
    yield from _offered(tuple(sys.path))


def every(kind: str) -> dict[str, Plugin]:
    """name -> plug-in of a kind, sorted by name. Raises ValueError for two of one name."""
    package = KINDS[kind].package
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    found = {}
    for folder in spec.submodule_search_locations:
        for path in _ours(kind, Path(folder), os.stat(folder).st_mtime_ns):
            found[path.stem] = Plugin(kind, path.stem, path, f"{package}.{path.stem}")
    for path, module in _outside():
        if not path.is_file():
            raise ValueError(f"{ENVIRONMENT}: {path} is not there")
        if kind_of(path) != kind:
            continue
        if path.stem in found and found[path.stem].path.resolve() != path.resolve():
            raise ValueError(f"{path}: {kind.removesuffix('s')} {path.stem!r} is there already, in {found[path.stem].path}; rename the file")
        found[path.stem] = Plugin(kind, path.stem, path, module or f"gsnr_plugins.{kind}.{path.stem}")
    return dict(sorted(found.items()))


class Missing(ValueError):
    """A plug-in that is not there; a checkpoint that was trained with it is not damaged for that."""


def missing(what: str, name: str, known: Iterable[str]) -> Missing:
    """What to raise for a plug-in's name that there is not."""
    return Missing(f"{unknown(what, name, known)}; a file of your own is named with --plugins, or in the environment variable {ENVIRONMENT}")


def names(kind: str) -> list[str]:
    """The plug-ins of a kind (a key of KINDS), sorted."""
    return list(every(kind))


def get(kind: str, name: str) -> Plugin:
    """The plug-in of that name. Raises ValueError listing the valid names."""
    found = every(kind)
    if name not in found:
        raise missing(kind.removesuffix("s"), name, found)
    return found[name]


def constant(kind: str, name: str, constant: str) -> object:
    """A literal that a plug-in's file assigns at its top (SUMMARY = "..."), read without importing it; None where it does not."""
    for node in ast.parse(get(kind, name).path.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [constant]:
            return ast.literal_eval(node.value)
    return None


def find(kind: str, name: str) -> ModuleType:
    """The module of that name. Raises ValueError listing the valid names."""
    return get(kind, name).load()


def hold(holds: bool, name: str, broken: str) -> None:
    """For contracts: raises ValueError, naming the plug-in, where a rule does not hold."""
    if not holds:
        raise ValueError(f"{name}: {broken}")


def hold_options(cls: object, extends: type, name: str) -> None:
    """For contracts: `cls`, a plug-in's options, is a dataclass that extends this one, and each option has its line of help."""
    declared = isinstance(cls, type) and is_dataclass(cls) and issubclass(cls, extends)
    hold(declared, name, f"its options are no dataclass that extends {extends.__name__}")
    for f in fields(cls):  # type: ignore[arg-type]
        hold(bool(f.metadata.get("help")), name, f"option {f.name!r} has no line of help; declare it with gsnr.options.option(default, help)")
