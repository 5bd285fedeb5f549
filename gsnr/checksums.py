"""SHA-256 of what lies on disk, kept beside it and compared on reading. Importable without torch.

    FOLDER/manifest.json     {"files": {"model/config.json": {"sha256": ..., "bytes": ...}, ...}, "sha256": of the rest}: every file below FOLDER;
                             of a safetensors file also "tensors": name -> [dtype, shape]
    a sealed JSON file       one that has "sha256" among its entries: of the others
    sealed safetensors       their metadata has "sha256": of the rest of it, of names, dtypes and shapes, and of the values

What was written before there were checksums is read as it is, and that is said once a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gsnr import files

MANIFEST = "manifest.json"
SEAL = "sha256"
TENSORS = ".safetensors"
BLOCK = 2**20
Entry = dict[str, Any]  # of a manifest: sha256, bytes, and tensors


def feed(path: Path, *digests: Any) -> None:
    """A file's bytes into hashes of `hashlib`, block by block."""
    with open(path, "rb", buffering=0) as handle:
        while block := handle.read(BLOCK):
            for digest in digests:
                digest.update(block)


def sha256(path: Path) -> str:
    """Of a file, streamed."""
    digest = hashlib.sha256()
    feed(path, digest)
    return digest.hexdigest()


@cache
def say_unchecked(folder: Path) -> None:
    """Once a folder, by the first process."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {folder}: from before checksums were kept; damage in it may stay unseen", file=sys.stderr)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its checksum, to be written as JSON."""
    return {**values, SEAL: _digest(json.loads(json.dumps(values)))}


def sealed_text(values: Mapping[str, Any]) -> str:
    """JSON of the same with its checksum, written out once: for large ones. All keys, of mappings inside too, are strings."""
    text = json.dumps(values, sort_keys=True)
    return f'{{"{SEAL}": "{hashlib.sha256(text.encode()).hexdigest()}"{", " if values else ""}{text[1:]}'


def unseal(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """What was sealed; `values` were read from `path`. Raises ValueError where it was changed since."""
    if SEAL not in values:
        say_unchecked(path.parent)
        return values
    rest = {key: value for key, value in values.items() if key != SEAL}
    if _digest(rest) != values[SEAL]:
        raise ValueError(f"{path}: damaged (changed since it was written: its SHA-256 is another)")
    return rest


def read_sealed(path: Path) -> dict[str, Any]:
    """What a sealed JSON file holds. Raises ValueError, naming it, where it is missing, no JSON mapping or was changed since it was written, and
    OSError where the disk does not let it be read, which says nothing against the file."""
    try:
        return unseal(_mapping(path), path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing") from error


def _mapping(path: Path) -> dict[str, Any]:
    """What a JSON file holds, not compared with its checksum yet. Raises ValueError for what is no mapping, FileNotFoundError for none."""
    try:
        values = files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged (not a mapping)")
    return values


def _parts(data: bytes) -> tuple[dict[str, str], dict[str, Any], memoryview]:
    """(metadata, header, values) of a safetensors file. Raises ValueError where it is none."""
    size = int.from_bytes(data[:8], "little")
    header = files.parse_json(data[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping")
    return header.pop("__metadata__", None) or {}, header, memoryview(data)[8 + size :]


def _digest_of_tensors(metadata: dict[str, str], header: dict[str, Any], values: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([metadata, header], sort_keys=True).encode())
    digest.update(values)
    return digest.hexdigest()


def seal_tensors(data: bytes) -> bytes:
    """A safetensors file (`safetensors.torch.save`) with its checksum."""
    metadata, header, values = _parts(data)
    sealed = {"__metadata__": {**metadata, SEAL: _digest_of_tensors(metadata, header, values)}, **header}
    text = json.dumps(sealed).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(values)


def read_tensors(path: Path) -> bytes:
    """A sealed safetensors file, for `safetensors.torch.load`. Raises ValueError where it was changed since it was sealed."""
    data = path.read_bytes()
    try:
        metadata, header, values = _parts(data)
        known = metadata.pop(SEAL, None)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if known is None:
        say_unchecked(path.parent)
    elif known != _digest_of_tensors(metadata, header, values):
        raise ValueError(f"{path}: damaged (changed since it was written: its SHA-256 is another)")
    return data


def entry_of(path: Path) -> Entry:
    """What a manifest says of a file."""
    entry: Entry = {"sha256": sha256(path), "bytes": path.stat().st_size}
    if path.suffix != TENSORS:
        return entry
    with path.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return entry | {"tensors": {name: [of["dtype"], of["shape"]] for name, of in header.items() if name != "__metadata__"}}


@dataclass(frozen=True)
class Manifest:
    """The files of a folder. known: whether it was made with checksums; if not, nothing is checked."""

    folder: Path
    files: dict[str, Entry] = field(default_factory=dict)
    known: bool = True

    @staticmethod
    def of(folder: Path, entries: Mapping[str, Entry] | None = None) -> Manifest:
        """Of all files that are there now. entries: of those that were hashed before, by name."""
        known = entries or {}
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda name: known.get(name) or entry_of(folder / name), names)
            return Manifest(folder, dict(zip(names, found, strict=True)))

    def text(self) -> str:
        """For FOLDER/manifest.json."""
        return json.dumps(seal({"files": self.files}), indent=1) + "\n"

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Raises ValueError where manifest.json is damaged."""
        path = folder / MANIFEST
        try:
            values = _mapping(path)
        except FileNotFoundError:
            say_unchecked(folder)
            return Manifest(folder, known=False)
        if SEAL not in values or not isinstance(values.get("files"), dict):
            raise ValueError(f"{path}: damaged (no checksum of its own, or no files)")
        return Manifest(folder, unseal(values, path)["files"])

    def compare(self, name: str, digest: str) -> None:
        """digest: a file's SHA-256 now. Raises ValueError where it is not the listed one."""
        if not self.known:
            return
        if name not in self.files:
            raise ValueError(f"{self.folder / name}: not listed in {self.folder / MANIFEST}")
        if digest != self.files[name]["sha256"]:
            raise ValueError(f"{self.folder / name}: damaged or truncated (not as it was written: its SHA-256 is another)")

    def check(self, name: str) -> None:
        """Raises ValueError where a file is missing, not listed or not as it was written. Of one that is shorter or longer nothing is read."""
        if not self.known:
            return
        path = self.folder / name
        try:
            now = path.stat()
        except FileNotFoundError as error:
            raise ValueError(f"{path}: missing") from error
        if not stat.S_ISREG(now.st_mode):
            raise ValueError(f"{path}: is no regular file")
        if name in self.files and now.st_size != self.files[name]["bytes"]:
            raise ValueError(f"{path}: damaged or truncated (not as it was written: {now.st_size} bytes, not {self.files[name]['bytes']})")
        self.compare(name, sha256(path))

    def check_all(self, leave_out: tuple[str, ...] = ()) -> None:
        """All listed files but those with these suffixes, which are checked as they are read. Raises ValueError for the first at fault."""
        if leave_out:
            for name in self.files:
                if not name.endswith(leave_out):
                    self.check(name)
            return
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter's lock alone
            list(pool.map(self.check, self.files))
