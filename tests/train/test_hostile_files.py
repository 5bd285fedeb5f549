"""Files and options that would take memory or processes without end: refused with the bound, before anything is taken."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch

from gsnr.commands import COMMANDS
from gsnr.declared import declared, file_of
from gsnr.options import declared_options
from gsnr.plugins import every
from gsnr.train.command import _read
from gsnr.train.config import ModelConfig, TrainConfig, nest, resolve
from gsnr.train.convert import foreign
from gsnr.train.data.labels import read_labels
from tests.train.foreign_files import Reference


def stored(path: Path, **changes: object) -> Path:
    """A file as SiT publishes it, with tensors replaced."""
    state: dict[str, object] = dict(Reference(outputs=8).state_dict())
    torch.save({"ema": state | changes, "args": Namespace(num_classes=10)}, path)
    return path


def test_a_zip_bomb_is_not_unfolded(tmp_path: Path) -> None:
    """64 MiB of zeros in 64 KB: torch.save never compresses, so what is compressed is refused unread."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w", force_zip64=True) as to:
        for _ in range(4):
            to.write(bytes(1 << 24))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"bomb\.pt: archive/data\.pkl in it is compressed"):
        foreign.read(tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "long.pt", "w") as archive:
        archive.writestr("archive/data.pkl", bytes(foreign.LARGEST_PICKLE + 1))
    with pytest.raises(ValueError, match=f"has {foreign.LARGEST_PICKLE + 1} bytes; at most {foreign.LARGEST_PICKLE} are read"):
        foreign.read(tmp_path / "long.pt")


def test_a_tensor_that_is_larger_than_what_is_stored(tmp_path: Path) -> None:
    """4 bytes, expanded to a width of 2^20: the model that they describe would take 2^43."""
    huge = torch.zeros(1).expand(2**20, 4, 1, 1)
    with pytest.raises(ValueError, match=r"'x_embedder\.proj\.weight' of shape \(1048576, 4, 1, 1\) is larger than what the file stores of it"):
        foreign.read(stored(tmp_path / "huge.pt", **{"x_embedder.proj.weight": huge}), "sit")


def test_args_that_hold_themselves_are_left_out(tmp_path: Path) -> None:
    endless: list[object] = [1]
    endless.append(endless)
    torch.save(
        {"ema": dict(Reference(outputs=8).state_dict()), "args": Namespace(num_classes=10, endless=endless, long="x" * 10**6)}, tmp_path / "a.pt"
    )
    assert foreign.read(tmp_path / "a.pt", "sit").args == {"num_classes": 10}


@pytest.mark.parametrize("name", ["deep.json", "pipe.json", "zero.json"])
def test_json_without_end(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "deep.json":
        path.write_text('{"labels": ' + "[" * 100_000)
    else:
        path.symlink_to("/dev/zero" if name == "zero.json" else "/dev/stdin")
    why = "nested too deeply" if name == "deep.json" else "is no regular file"
    with pytest.raises(ValueError, match=f"--config {path}: cannot be read as JSON .*{why}"):
        _read(path)
    with pytest.raises(ValueError, match=f"{path}: not a labels file .*{why}"):
        read_labels(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data.workers": "100000"}, "--data.workers 100000: must be at least 0 and at most 256"),
        ({"batch": "99999999999999999999"}, "--batch 99999999999999999999: must be at least 1 and at most 1048576"),
        ({"alignment": "repa", "alignment.projector_width": "10000000"}, "alignment.projector-width 10000000: must be at least 1 and at most 65536"),
        ({"data.path": "~/cache"}, "--data.path '~/cache' begins with ~, which the shell alone expands"),
        ({"data.path": "s3://bucket/x"}, "--data.path 's3://bucket/x' is an address; only paths on this machine are read"),
    ],
)
def test_options_are_bounded(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        resolve({}, nest(options))
    assert message in str(error.value)


def test_the_size_of_a_model_is_that_of_its_weights() -> None:
    """Near enough (a tenth), and never far above, or models that fit would be refused."""

    from gsnr.train.models.sit import SiT

    for shape in (ModelConfig(hidden_size=384, depth=12, num_heads=6), ModelConfig(hidden_size=64, depth=2, num_heads=2, num_classes=5)):
        with torch.device("meta"):
            counted = sum(p.numel() for p in SiT(**shape.options).parameters())
        assert 0.9 * counted < shape.parameters < 1.1 * counted


def test_every_number_of_every_command_has_bounds() -> None:
    """Seeds apart, whose bound is what numpy and torch take."""
    classes = [TrainConfig] + [declared_options(one.path, "Options") for one in every("probes").values()]
    classes += [declared_options(one.path, "Config") for one in every("alignments").values()]
    for cls in classes:
        sections = [f.default for f in fields(cls) if is_dataclass(f.default)]
        for f in [*fields(cls), *(f for section in sections for f in fields(section))]:
            if str(f.type).startswith("int") and f.name not in ("seed", "tap", "teacher_tap"):  # blocks: by the depth of the model
                assert f.metadata.get("high"), (cls, f.name)
    for command in COMMANDS.values():
        parser = declared(file_of(command.module), "_parser")()
        numbers = {action.dest for action in parser._actions if action.type in (int, float)}
        bounded_in_prepare = {"resolution", "patch", "heldout", "num_classes", "batch", "workers", "shard"} if "prepare" in command.module else set()
        assert numbers == set(parser.bounds) | bounded_in_prepare, command.module
