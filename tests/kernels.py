"""Notebooks executed in kernels that are forked from this process. Apart from the tests, because nbformat takes five seconds to import."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.connect import write_connection_file
from nbclient import NotebookClient

from tests.forked import Forked

IMPORTED = ("IPython", "jinja2", "matplotlib.figure", "pandas", "pyarrow.parquet", "scipy.special")  # by all of them, once, and not ours


class Running(AsyncKernelManager):
    """Of a kernel that somebody else has started."""

    has_kernel = True


def as_new() -> None:
    """A process that has imported nothing of ours, with an event loop of its own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "gsnr"]:
        del sys.modules[name]
    asyncio.set_event_loop(asyncio.new_event_loop())


def executed(path: Path, connection: str) -> nbformat.NotebookNode:
    """A notebook, run top to bottom in a kernel of its own. connection: the file that kernel and client meet by."""
    for name in IMPORTED:
        import_module(name)
    notebook = nbformat.read(path, as_version=4)
    write_connection_file(connection)
    process = Forked(["-f", connection], path.parent, ready=as_new, main=import_module("ipykernel.kernelapp").launch_new_instance)
    manager = Running(owns_kernel=False, connection_file=connection)
    manager.load_connection_file()
    try:
        NotebookClient(notebook, km=manager, timeout=120).execute(cleanup_kc=True)
    finally:
        process.end(0)
    return notebook
