"""Writing files so that a kill or a full disk leaves what was there before: aside, synced, renamed. Imports nothing heavy.

What is being written lies beside its place in a folder of its own, `.NAME.HOST.RANDOM.aside`, until it is whole. That folder is made
exclusively and for this user alone, so no link that somebody laid there is followed. It is locked while its maker lives: what a killed one left
is removed when something is written there again from the same host, since other hosts may not see its lock (Lustre, some NFS).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ASIDE = ".aside"
HOST = re.sub(r"[^A-Za-z0-9-]", "-", os.uname().nodename)
NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of a folder on file systems that have no such thing (CIFS, some FUSE)
Replacing = Callable[[Path], AbstractContextManager[Path]]


def _safetensors() -> type[Exception]:
    """What safetensors raises on a full disk: no OSError. Imported where something was raised, and no sooner."""
    from safetensors import SafetensorError

    return SafetensorError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing inside name the path, whichever library raised them: OSError with `filename` and `strerror`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and ASIDE not in str(error.filename):
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except _safetensors() as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from error


def sync(path: Path) -> None:
    """Makes a file's contents, or a folder's entries where the file system can, outlive a power loss. Raises OSError naming the path."""
    with naming(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if not (path.is_dir() and error.errno in NO_SYNC):
                raise
        finally:
            os.close(handle)


def check_replaceable(path: Path) -> None:
    """Raises ValueError for what is there and is no regular file: a folder, a device, a pipe, a link. Asked again when it is replaced."""
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kinds = {stat.S_ISDIR: "a folder", stat.S_ISLNK: "a link"}
            what = next((name for is_one, name in kinds.items() if is_one(mode)), "a device or pipe")
            raise ValueError(f"{path}: {what}, not a file; it is left as it is")


def left_behind(path: Path) -> bool:
    """Whether it is a folder aside, by its name: of a process that is at work, or was killed."""
    return path.name.startswith(".") and path.name.endswith(ASIDE)


def _clear(folder: Path) -> None:
    """Removes folders aside whose makers, on this host, live no more."""
    for left in folder.glob(f".*{ASIDE}"):
        if left.name.split(".")[-3] != HOST:
            continue
        with suppress(OSError):  # held by its maker, removed by another, or there are no locks here: then it is left
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(handle)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A path to write to in place of `path`, in a folder of its own beside it; whatever is still there at the end vanishes, what a killed
    process left there too."""
    _clear(path.parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.{HOST}.", suffix=ASIDE, dir=path.parent))
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another took it for left behind, before it was opened
            continue
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():  # else the same, before it was locked
            break
        os.close(handle)
    try:
        yield folder / f".{path.name}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextmanager
def together() -> Iterator[Replacing]:
    """Files that are replaced all or none: gives what `replacing` is. They take their places, in the order of writing, once the block has ended
    well and all of them are synced; a full disk or an error leaves what was there before. One whose error the block caught is left out."""
    written: dict[Path, Path] = {}
    with ExitStack() as asides:

        @contextmanager
        def one(path: Path) -> Iterator[Path]:
            check_replaceable(path)
            with naming(path):
                aside = asides.enter_context(scratch(path))
                yield aside
                sync(aside)
            written[path] = aside

        yield one
        for path, aside in written.items():
            with naming(path):
                os.replace(aside, path)
        for folder in {path.parent for path in written}:
            sync(folder)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what was written there takes the place of `path` if the block ends well, and vanishes if not.

    Raises ValueError where `path` is something else than a file, OSError naming it where it cannot be written."""
    with together() as replacing_one, replacing_one(path) as aside:
        yield aside


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill; it takes the place of `folder`, which must be new or empty, once the block has ended well and all of it is synced. A
    kill, a full disk or an error leaves nothing. Raises OSError naming it where it cannot be written."""
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch(folder) as aside:
            aside.mkdir()
            yield aside
            for path in (*aside.rglob("*"), aside):
                sync(path)
            os.rename(aside, folder)
            sync(folder.parent)


def write_texts(texts: Mapping[Path, str]) -> None:
    """Replaces text files as a whole, all or none. Raises as `replacing` does."""
    with together() as replacing_one:
        for path, text in texts.items():
            with replacing_one(path) as aside:
                aside.write_text(text)


def require_regular(path: Path) -> None:
    """Raises ValueError for what is no regular file: a device never ends, and a pipe waits."""
    if not path.is_file() and path.exists():
        raise ValueError(f"{path.name}: is no regular file")


def parse_json(text: str | bytes) -> Any:
    """What JSON from a disk says. Raises ValueError for what is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error


def read_json(path: Path) -> Any:
    """A JSON file's contents. Raises ValueError for what is no regular file, no JSON, or nested too deeply, OSError where it cannot be read."""
    require_regular(path)
    return parse_json(path.read_text())


def write_text(path: Path, text: str) -> None:
    """Replaces a text file as a whole. Raises as `replacing` does."""
    write_texts({path: text})


def check_writable(folder: Path, flag: str) -> None:
    """Raises ValueError, naming the flag, where a folder cannot be created or written to; leaves everything as it was, also when it is killed.

    Called before hours go into what would be written there. Checkpoints and caches take nothing else in.
    """
    _check_free(folder, f"{flag} {folder}")
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    try:
        with scratch(there / "writable") as aside:
            (aside / folder.relative_to(there)).mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{flag} {folder}: cannot be written to ({error.strerror})") from error


def check_output(path: Path, flag: str, suffix: str) -> None:
    """Raises ValueError, naming the flag, where a command must not write its file: another kind of file is never replaced, by its ending."""
    if path.is_dir() or path.suffix.lower() != suffix:
        raise ValueError(f"{flag} {path}: name a file that ends in {suffix}")
    check_replaceable(path)
    check_writable(path.parent, flag)


def _check_free(folder: Path, said: str) -> None:
    """Raises ValueError for a folder in a checkpoint or a cache."""
    for place in (folder, *folder.absolute().parents):
        checkpoint = (place / "state.json").is_file() and any((place / weights).is_dir() for weights in ("model", "ema"))
        if checkpoint or (place.name == "checkpoints" and (place.parent / "LAST").is_file()) or (place / "gsnr_cache.json").is_file():
            raise ValueError(f"{said}: lies in {place}, a checkpoint or cache, which takes nothing else in; name another place")
