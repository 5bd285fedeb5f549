"""Finds alignments, routers and projectors by name: one file each in the folder of that name, no list to edit."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType


def names(kind: str) -> list[str]:
    """The plug-ins of a kind ("alignments", "routers", "projectors"), sorted; files that start with an underscore are not plug-ins."""
    package = import_module(f"train.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(kind: str, name: str) -> ModuleType:
    """The module train/<kind>/<name>.py. Raises ValueError listing the valid names."""
    if name not in names(kind):
        raise ValueError(f"{kind.removesuffix('s')} {name!r} does not exist; choose from {', '.join(names(kind))}")
    return import_module(f"train.{kind}.{name}")
