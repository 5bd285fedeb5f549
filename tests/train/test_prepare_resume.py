"""A cache is the same whatever the number of processes and workers and however often its making was killed; a full disk; who may go on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from gsnr import checksums, commandline
from gsnr.train.data import arrow, cache
from gsnr.train.prepare import shards
from gsnr.train.prepare.command import main
from tests.conftest import REPO, call
from tests.forked import ranks

IMAGES = 48


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As torchrun gives its processes: another number of threads adds up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Options of a command over 48 pictures in shards of 3, two of which cannot be read, with everything that is stored switched on."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",)}
    AutoencoderKL(block_out_channels=(4, 8, 16, 16), layers_per_block=2, norm_num_groups=4, **blocks).save_pretrained(folder / "vae")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / "pictures" / f"class{i % 4}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40 + i, 3), dtype=np.uint8)).save(path)
    for i in (17, 30):
        (folder / "pictures" / f"class{i % 4}" / f"{i}.png").write_bytes(b"nonsense")
    paths = ("--data", folder / "pictures", "--vae", folder / "vae")
    return (*paths, "--resolution", 32, "--heldout", 9, "--shard", 3, "--batch", 2, "--dtype", "int8", "--flip", "--skip-bad")


@pytest.fixture(scope="module")
def whole(words: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made in one go, by one process."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    assert call(main, *words, "--out", out) == 0
    return out


def assert_same(a: Path, b: Path) -> None:
    """Byte for byte, but for the fingerprints that `datasets` may look at."""
    for folder in (a, b):
        cache.open_cache(folder, ("G3", "G4"))
        assert not list(folder.parent.glob(f".{folder.name}.*")), "nothing is left beside it"
    names = sorted(str(path.relative_to(a)) for path in a.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(b)) for path in b.rglob("*") if path.is_file())
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    for split in cache.SPLITS:
        assert arrow.read_folder(a / split).equals(arrow.read_folder(b / split))


def test_two_processes_make_what_one_makes(words: tuple[object, ...], whole: Path, tmp_path: Path) -> None:
    first, _ = ranks(2, ["prepare", *map(str, words), "--out", str(tmp_path / "cache")], REPO, printed=tmp_path / "printed")
    assert_same(whole, tmp_path / "cache")
    printed = (tmp_path / "printed").read_text()
    assert "46 images of 4 classes" in printed and ", 2 left out; 48 read and encoded" in printed
    assert f"{IMAGES}/{IMAGES}" in first.error, "the bar of the first process counts the images of both"


def test_workers_make_no_difference(words: tuple[object, ...], whole: Path, tmp_path: Path) -> None:
    assert call(main, *words, "--workers", 2, "--out", tmp_path / "cache") == 0
    assert_same(whole, tmp_path / "cache")


def shards_of(out: Path) -> list[Path]:
    """The notes of the shards that are finished."""
    return [note for note in out.with_name(f".{out.name}.preparing").glob("notes/*") if not note.name.startswith(".")]


def forked(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """It leads a group of its own, of which it is the only one but for its workers."""

    def apart() -> None:
        os.setsid()
        work()

    child = multiprocessing.get_context("fork").Process(target=apart)
    child.start()
    return child


@pytest.fixture
def children() -> Iterator[list[multiprocessing.process.BaseProcess]]:
    """For what a test forks. In the end their workers are killed: one whose parent died before it had looked who that is waits for ever."""
    found: list[multiprocessing.process.BaseProcess] = []
    yield found
    for child in found:
        assert child.pid
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def test_kill_minus_9_and_the_same_command_again(
    words: tuple[object, ...], whole: Path, tmp_path: Path, children: list[multiprocessing.process.BaseProcess]
) -> None:
    """Killed at random moments until it ends by itself: some time after its start and, every other time, after it finished a shard; with and
    without workers (which outlive their parent by seconds)."""
    out, rng, reached = tmp_path / "cache", random.Random(0), [0]
    real = shards.write_rows

    def work() -> None:
        def slowly(*arguments: Any) -> None:
            real(*arguments)
            time.sleep(0.03)

        shards.write_rows = slowly
        torch.set_num_threads(1)
        call(main, *words, "--workers", len(reached) // 2 % 2, "--out", out)

    while True:
        children.append(child := forked(work))
        until = time.monotonic() + 60  # a forked child may find a lock that a thread of its parent held: then it is killed as well
        while len(reached) % 2 and child.is_alive() and len(shards_of(out)) == reached[-1] and time.monotonic() < until:
            time.sleep(0.005)
        child.join(rng.uniform(0.0, 2.0 if out.exists() else 0.1))
        child.kill()
        child.join()
        if child.exitcode != -signal.SIGKILL:
            break
        reached.append(len(shards_of(out)) if not out.exists() else IMAGES)
    assert child.exitcode == 0, "it ended by itself"
    print("finished shards at each kill:", reached)
    assert reached == sorted(reached) and len(set(reached)) >= 3, "it was killed at different stages, and lost nothing that was finished"
    assert_same(whole, out)


def test_a_full_disk_is_one_line_and_what_is_finished_stays(
    words: tuple[object, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, opened, real = tmp_path / "cache", [], pa.OSFile

    def full(path: str, mode: str) -> pa.OSFile:
        """The fifth shard meets a disk without room: the kernel's /dev/full."""
        opened.append(path)
        return real(path if len(opened) < 5 else "/dev/full", mode)

    monkeypatch.setattr(pa, "OSFile", full)
    with pytest.raises(ValueError, match=r"the disk is full; 4 of 16 shards are finished and stay in .*\.cache\.preparing: make room and run"):
        call(main, *words, "--out", out)
    monkeypatch.undo()
    assert not out.exists()
    before = {path: path.stat().st_mtime_ns for path in out.with_name(".cache.preparing").glob("cache/*/*.arrow")}
    assert len(before) == 4
    assert call(main, *words, "--out", out) == 0
    assert {path.stat().st_mtime_ns for path in out.glob("*/*.arrow")} >= set(before.values()), "what was finished was not made again"
    assert_same(whole, out)


def test_a_quota_that_is_used_up_is_a_full_disk(words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(shards, "write_rows", refuse)
    with pytest.raises(ValueError, match="the disk is full; 0 of 16 shards"):
        call(main, *words, "--out", tmp_path / "cache")


@pytest.fixture
def begun(words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """--out of a command that was stopped after some shards."""
    real, count = shards.write_rows, iter(range(100))

    def stop(*arguments: object) -> None:
        if next(count) == 4:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "write_rows", stop)
        call(main, *words, "--out", tmp_path / "cache")
    return tmp_path / "cache"


def test_ctrl_c_says_how_to_go_on(words: tuple[object, ...], whole: Path, begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shards.Workplace, "write", stopped)
        with pytest.raises(KeyboardInterrupt, match=r"finished shards stay in .*\.cache\.preparing; the same command goes on"):
            call(main, *words, "--out", begun)
    assert call(main, *words, "--out", begun) == 0
    assert_same(whole, begun)


def changed(words: tuple[object, ...], flag: str, value: object) -> list[object]:
    at = words.index(flag)
    return [*words[: at + 1], value, *words[at + 2 :]]


def test_other_options_are_named(words: tuple[object, ...], whole: Path, begun: Path, tmp_path: Path) -> None:
    """For a cache that is there and for one that was begun; the bytes of both stay as they are."""
    aside = begun.with_name(".cache.preparing")
    before = {p: p.read_bytes() for folder in (aside, whole) for p in folder.rglob("*") if p.is_file() and p.name != "lock"}
    for out, what in ((whole, "was prepared with other options"), (begun, r"was begun, in .*\.cache\.preparing, with other options")):
        for flag, value, was in (("--dtype", "float16", "'int8'"), ("--heldout", 8, "9"), ("--shard", 4, "3"), ("--vae", "demo", "'[0-9a-f]+'")):
            with pytest.raises(ValueError, match=rf"{what}: {flag}.* was {was}, now .*; use the same, or name a new folder"):
                call(main, *changed(words, flag, value), "--out", out)
        with pytest.raises(ValueError, match="--flip was True, now False"):
            call(main, *(w for w in words if w != "--flip"), "--out", out)
        fewer = tmp_path / "fewer"
        fewer.mkdir(exist_ok=True)
        (fewer / "labels.csv").write_text("file,label\n" + "".join(f"class0/{i}.png,0\n" for i in range(0, IMAGES, 4)))
        with pytest.raises(ValueError, match=r"--data \(images, .*\) was \[48, '.*'\], now \[12, '"):
            call(main, *changed(words, "--data", fewer), "--num-classes", 4, "--out", out)
    assert before == {p: p.read_bytes() for p in before}


def test_other_pictures_under_the_same_names_are_other_data(words: tuple[object, ...], whole: Path, begun: Path) -> None:
    """Of the same length even, and with the same time of change; for a cache that is there and for the finished part of one that was begun."""
    sources = pq.read_table(whole / cache.SOURCES).to_pylist()
    assert [row["number"] for row in sources] == list(range(IMAGES)) and sources[-1]["sha256"]
    folder = words[words.index("--data") + 1]
    assert isinstance(folder, Path)
    picture = folder / "class0" / "0.png"
    before, times = picture.read_bytes(), picture.stat()
    try:
        picture.write_bytes(before[:-1] + b"\0")
        os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
        for out, what in ((whole, "was prepared"), (begun, r"was begun, in .*")):
            with pytest.raises(ValueError, match=rf"--out {out}: {what} from other pictures: {picture} had {len(before)} bytes with SHA-256"):
                call(main, *words, "--out", out)
    finally:
        picture.write_bytes(before)
    assert call(main, *words, "--out", whole) == 0


def test_batch_and_workers_may_change_on_the_way(words: tuple[object, ...], whole: Path, begun: Path) -> None:
    """To float32's last bits, which eight bits and float16 round away but for a step here and there."""
    assert call(main, *changed(words, "--batch", 3), "--workers", 1, "--out", begun) == 0
    for split in cache.SPLITS:
        a, b = (cache.open_cache(folder, ())[1][split] for folder in (whole, begun))
        index = np.arange(a.size)
        one, two = (s.take(index, ("image_id", "label", "mean", "G4"), 1) for s in (a, b))
        np.testing.assert_array_equal(one["image_id"], two["image_id"])
        np.testing.assert_allclose(one["mean"], two["mean"], atol=1e-5)
        np.testing.assert_allclose(one["G4"], two["G4"], atol=0.1)


def test_a_finished_cache_is_left_as_it_is(words: tuple[object, ...], whole: Path, capsys: pytest.CaptureFixture) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    leftover = whole.with_name(f".{whole.name}.preparing")  # as after a kill between the last rename and the removal
    (leftover / "notes").mkdir(parents=True)
    assert call(main, *words, "--out", whole) == 0
    assert "already prepared with these options; nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")} and not leftover.exists()


def test_caches_from_before_checksums(words: tuple[object, ...], whole: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A finished one is left as it is, with a note; one that was begun would have them for some rows."""
    old, aside = tmp_path / "old", begun.with_name(".cache.preparing")
    shutil.copytree(whole, old)
    (old / checksums.MANIFEST).unlink()
    header = json.loads((old / cache.HEADER).read_text())
    del header["rows_sha"]
    (old / cache.HEADER).write_text(json.dumps(header))
    for record in (old / shards.RECORD, aside / "options.json"):
        values = json.loads(record.read_text())
        del values["options"]["checksums of rows"]
        record.write_text(json.dumps(values))
    assert call(main, *words, "--out", old) == 0
    assert f"note: {old}: from before checksums were kept" in capsys.readouterr().err
    with pytest.raises(ValueError, match=rf"was begun, in {aside}, by an older version; delete {aside} and run"):
        call(main, *words, "--out", begun)


def test_a_shard_that_was_damaged_meanwhile_is_named_and_made_again(words: tuple[object, ...], whole: Path, begun: Path) -> None:
    aside = begun.with_name(".cache.preparing")
    shard, other = sorted(aside.glob("cache/train/*.arrow"))[:2]
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{shard.name}: damaged or incomplete .*; delete it and run the same command again"):
        call(main, *words, "--out", begun)
    shard.unlink()
    note = aside / "notes" / f"train-{other.stem.removeprefix('data-')}.safetensors"
    note.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{note.name}: damaged .*; delete it and run the same command again"):
        call(main, *words, "--out", begun)
    note.unlink()
    assert call(main, *words, "--out", begun) == 0
    assert_same(whole, begun)


def test_two_commands_do_not_write_to_one_folder(words: tuple[object, ...], begun: Path) -> None:
    place = shards.Workplace(begun.with_name(".cache.preparing"))
    ready = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        with place.locked():
            ready.set()
            time.sleep(60)

    child = forked(hold)
    assert ready.wait(20)
    with pytest.raises(ValueError, match="another process is at work there"):
        call(main, *words, "--out", begun)
    child.kill()
    child.join()
    assert call(main, *words, "--out", begun) == 0, "the lock ended with its process"


def test_an_error_is_told_once_and_ends_all_processes(words: tuple[object, ...], tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Two processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = ["prepare", *map(str, changed(words, "--heldout", 48)), "--out", str(tmp_path / "cache")]
        commandline.run(lambda: main(sys.argv[1:]), "gsnr prepare", "train")

    children = [forked(partial(rank, number)) for number in range(2)]
    for child in children:
        child.join(60)
        assert child.exitcode == 2
    said = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert said == ["error: --heldout 48: must be at least 1 and leave some of the 48 images for training"]
    assert list(tmp_path.iterdir()) == []
