"""In a checkout, `python -m train` and its like run the modules of `gsnr.train`: nothing is imported under two names.

The folders train, probes and figures are packages inside gsnr (links in a checkout, plain folders in a wheel), and are imported as gsnr.train
and so on, because every repository of this field has a `train.py` or `utils.py` of its own. Only `python -m train...` typed in a checkout
imports the folder by its short name. Its `__init__.py` then calls `same_as_in_gsnr`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType
from typing import Any


class _SameModule(MetaPathFinder, InspectLoader):
    """Finds TOP.x, and gives the module gsnr.TOP.x for it."""

    def __init__(self, top: str) -> None:
        self.top = top

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        real = find_spec(f"gsnr.{fullname}") if fullname.startswith(f"{self.top}.") else None
        if real is None:
            return None
        spec = spec_from_loader(fullname, self, origin=real.origin, is_package=real.submodule_search_locations is not None)
        if spec is not None:
            spec.has_location = real.has_location
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(f"gsnr.{spec.name}")
        self.kept = module.__spec__  # the import system is about to put the other one there
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.kept

    def get_code(self, fullname: str) -> CodeType | None:
        """What runpy executes as __main__: of a command's module the command, which imports it where help is not all that is asked for."""
        from gsnr.commands import COMMANDS

        name = next((name for name, command in COMMANDS.items() if command.module == f"gsnr.{fullname}"), None)
        if name is not None:
            text = f"from gsnr import commands\n\nif __name__ == '__main__':\n    commands.run({name!r})"
            return compile(text, f"<gsnr {name}>", "exec")
        real = find_spec(f"gsnr.{fullname}")
        loader: Loader | None = real.loader if real else None
        return loader.get_code(f"gsnr.{fullname}") if isinstance(loader, InspectLoader) else None

    def get_source(self, fullname: str) -> str | None:
        return None


def same_as_in_gsnr(top: str) -> None:
    """Makes the package imported as `top`, and all below it, those of gsnr.top."""
    sys.modules[top] = import_module(f"gsnr.{top}")
    sys.meta_path.insert(0, _SameModule(top))
