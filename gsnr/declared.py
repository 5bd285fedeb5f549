"""One top-level definition of a source file, without running the rest of the file: what `--help` says about a command or a plug-in whose file
imports torch.

`declared(path, name)` evaluates that definition and, when and only when they are asked for, those that it names: in the same file, or in a file
of gsnr that it imports from. Other imports are done really. So the field defaults of a dataclass are evaluated, and its bases; its methods,
and annotations, are not. Functions find the names in their bodies when they run. A module that is loaded already is taken as it is.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent  # of the package gsnr


def declared(path: Path, name: str) -> Any:
    """The class, function or value `name` of a file. Raises ValueError where the file does not define it at its top."""
    try:
        return _names_of(path)[name]
    except KeyError:
        raise ValueError(f"{path}: defines no {name!r} at its top") from None


def file_of(module: str) -> Path:
    """Where a module of gsnr lies. Nothing is imported."""
    place = ROOT.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@cache
def _names_of(path: Path) -> _Names:
    return _Names(path)


class _Module:
    """A module of gsnr whose attributes are evaluated one by one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        try:
            return _names_of(self._path)[name]
        except KeyError:
            raise AttributeError(f"{self._path}: defines no {name!r} at its top") from None


class _Names(dict):
    """The top-level names of a file, each evaluated when it is first asked for. Also the globals of what is evaluated."""

    def __init__(self, path: Path) -> None:
        # dataclasses look for the module of a class
        super().__init__(__builtins__=builtins, __name__=__name__, __file__=str(path))
        self.path = path
        tree = ast.parse(path.read_text())
        self["__doc__"] = ast.get_docstring(tree, clean=False)
        self.makers = {bound: node for node in tree.body for bound in _bound_by(node)}

    def __missing__(self, name: str) -> Any:
        node = self.makers[name]
        if isinstance(node, ast.Import | ast.ImportFrom):
            self[name] = self._imported(node, name)
        else:
            for used in _used_at_once(node):  # the body of a class asks a plain dict
                if used in self.makers and used not in self and used != name:
                    self[used]
            code = compile(ast.Module([node], []), str(self.path), "exec", __future__.annotations.compiler_flag, dont_inherit=True)
            exec(code, self)
        return self[name]

    @staticmethod
    def _imported(node: ast.Import | ast.ImportFrom, name: str) -> Any:
        alias = next(a for a in node.names if name in (a.asname, a.name, a.name.partition(".")[0]))
        if isinstance(node, ast.Import):
            module = import_module(alias.name)
            return module if alias.asname else sys.modules[name]
        package = node.module or ""
        if package.split(".")[0] != "gsnr" or (package in sys.modules and hasattr(sys.modules[package], alias.name)):
            return getattr(import_module(package), alias.name)
        if f"{package}.{alias.name}" in sys.modules:
            return sys.modules[f"{package}.{alias.name}"]
        inside = file_of(f"{package}.{alias.name}")
        return _Module(inside) if inside.is_file() else declared(file_of(package), alias.name)


def _bound_by(node: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (a.asname or a.name.partition(".")[0] for a in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))


def _used_at_once(node: ast.AST) -> Iterator[str]:
    """The names that a definition reads when it is run: not those in bodies of functions, nor in annotations."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node.id
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or (field == "body" and isinstance(node, ast.FunctionDef | ast.Lambda)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _used_at_once(child)
