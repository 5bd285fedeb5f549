"""What is on disk is compared with its checksums: a bit that fell over, files that were exchanged, states that contradict themselves."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gsnr import checksums
from gsnr.train import opening, trainer, verify
from gsnr.train.command import main
from gsnr.train.config import resolve
from gsnr.train.data import arrow, cache
from gsnr.train.loader_benchmark import synthetic_cache
from gsnr.train.presets import find
from gsnr.train.runs import checkpoint, training_state
from tests.attack import flips
from tests.attack.flips import flipped, without_checksums
from tests.conftest import call
from tests.train.run_files import assert_same_run, hash_again

RESUME = ("--preset", "smoke", "--trackers", "none", "--steps", 31, "--resume")


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 300 random images in three shards, and 8 held out."""
    out = tmp_path_factory.mktemp("synthetic") / "cache"
    synthetic_cache(out, resolve(find("smoke")), 300, "int8")
    return out


def last(run: Path) -> Path:
    return run / "checkpoints" / "0000030"


def test_a_disk_that_does_not_read_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told of damage deletes good work."""
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"config.json: missing$"):
        checksums.read_sealed(path)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"config.json: damaged \(config.json: is no regular file\)"):
        checksums.read_sealed(path)
    path.unlink()
    path.write_text("{}")

    def fails(*words: object, **more: object) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_text", fails)
    with pytest.raises(OSError, match="Input/output") as error:
        checksums.read_sealed(path)
    assert error.value.filename == str(path)


def test_a_large_mapping_is_sealed_in_one_pass(tmp_path: Path) -> None:
    """Its text is what `seal` makes of it, and a changed number is seen."""
    path = tmp_path / "bin0.json"
    for values in ({"cells": [{"b": 0.1, "a": float("inf")}], "Cells": "ü"}, {}):
        path.write_text(checksums.sealed_text(values))
        assert json.loads(path.read_text()) == checksums.seal(values)
        assert checksums.read_sealed(path) == values
    path.write_text(checksums.sealed_text({"cells": [1.5]}).replace("1.5", "1.25"))
    with pytest.raises(ValueError, match=r"bin0.json: damaged \(changed"):
        checksums.read_sealed(path)


def test_json_without_end_is_damage(tmp_path: Path) -> None:
    deep = "[" * 10**5
    for name in ("config.json", checksums.MANIFEST, "piece.safetensors"):
        (tmp_path / name).write_bytes((len(deep).to_bytes(8, "little") if "piece" in name else b"") + deep.encode())
    read: Callable[[Path], object]
    for read, name in ((checksums.read_sealed, "config.json"), (checksums.read_tensors, "piece.safetensors")):
        with pytest.raises(ValueError, match=rf"{name}: damaged \(its lists and objects are nested too deeply"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match=r"manifest.json: damaged \(its lists and objects are nested too deeply"):
        checksums.Manifest.read(tmp_path)


def test_what_is_no_file_is_not_no_manifest(run: Path) -> None:
    """A pipe in its place used to pass for a folder from before there were checksums."""
    manifest = last(run) / checksums.MANIFEST
    for name in ("model/config.json", checksums.MANIFEST):
        (last(run) / name).unlink()
        os.mkfifo(last(run) / name)
        with pytest.raises(ValueError, match=rf"{last(run) / name}: .*is no regular file"):
            checkpoint.load(last(run))
        assert checkpoint.locate(run) == last(run) and next(checkpoint.whole(run)) != last(run)
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(ValueError, match=r"manifest.json: is no regular file"):
        checksums.Manifest.read(last(run))


def test_one_process_of_a_machine_compares_the_checksums(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each used to read and hash all of the checkpoint."""
    hashed: list[Path] = []
    real = checksums.sha256
    monkeypatch.setattr(checksums, "sha256", lambda path: hashed.append(path) or real(path))
    for rank, times in (("0", 8), ("1", 0)):
        hashed.clear()
        loaded = checkpoint.load(run, "raw")
        objective = trainer.Objective(loaded.model, loaded.alignment)
        hashed.clear()
        monkeypatch.setenv("LOCAL_RANK", rank)
        training_state.restore(last(run), objective, objective, trainer.optimizer.make(objective, loaded.config.optim))
        assert len(hashed) == times


@pytest.mark.parametrize("slot", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_one_number_that_adamw_cannot_have_left(run: Path, slot: str, value: float) -> None:
    """It used to become weights that are NaN, saved, and the last good checkpoint deleted, with exit code 0."""
    path = last(run) / "optimizer.safetensors"
    flat = load_file(path)
    key = next(k for k in flat if k.endswith(f"|{slot}"))
    flat[key].view(-1)[0] = value
    save_file(flat, path)
    hash_again(last(run))
    if (slot, value) == ("exp_avg", -1.0):
        assert call(main, *RESUME, "--out", run) == 0
        return
    before = sorted((run / "checkpoints").iterdir())
    with pytest.raises(ValueError, match=rf"optimizer.safetensors: damaged \(tensor '{key}' holds values that AdamW".replace("|", r"\|")):
        call(main, *RESUME, "--keep-last", 1, "--out", run)
    assert before == sorted((run / "checkpoints").iterdir())


@pytest.mark.parametrize("where", ["weights", "average", "optimizer"])
def test_what_is_not_finite_is_not_saved(run: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training_state.save

    def poisoned(*words: object, **named: object) -> Path:
        objective = named["ema" if where == "average" else "objective"]
        assert isinstance(objective, torch.nn.Module)
        weight = next(objective.parameters())
        poisoned_one = named["optimizer"].state[weight]["exp_avg"] if where == "optimizer" else weight.data  # type: ignore[attr-defined]
        poisoned_one.view(-1)[0] = float("nan")
        return real(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(training_state, "save", poisoned)
    with pytest.raises(ValueError, match=r"0000031: not saved, for .* holds values that are not finite"):
        call(main, *RESUME, "--keep-last", 1, "--out", run)
    assert (run / "LAST").read_text() == "0000030\n" and len(list((run / "checkpoints").iterdir())) == 3


def test_nothing_is_deleted_while_steps_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = trainer.optimisation_step, iter(range(1, 100))

    def skipped(*words: object, **named: object) -> dict[str, torch.Tensor]:
        return real(*words, **named) | {"skipped": torch.tensor(float(next(count) > 2))}  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "optimisation_step", skipped)
    words = ("--preset", "smoke", "--alignment", "none", "--trackers", "none", "--steps", 4, "--save-every", 1, "--keep-last", 1)
    assert call(main, *words, "--out", tmp_path / "run") == 0
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["0000002", "0000003", "0000004"]


def test_single_bits_of_a_run(run: Path) -> None:
    """Two in every file: `gsnr verify` and --resume notice each; loading, those of what it reads."""
    rng = random.Random(0)
    names = [*checksums.Manifest.read(last(run)).files, checksums.MANIFEST]
    assert len(names) == 9
    for name in names * 2:
        with flipped(last(run) / name, rng) as where:
            with pytest.raises(ValueError, match=r"[1-9] of \d+ files are not"):
                call(verify.main, last(run))
            with pytest.raises(ValueError, match=str(run)):
                opened = _restored(run)
                raise AssertionError(f"{name} {where}: {opened}")
            if name.startswith(("ema", "alignment_ema", "state", "manifest")) or name.endswith(".json"):
                with pytest.raises(ValueError, match=str(last(run))):
                    checkpoint.load(run)
    assert call(verify.main, run) == 0


def _restored(run: Path) -> dict:
    loaded = checkpoint.load(run, "raw")
    objective = trainer.Objective(loaded.model, loaded.alignment)
    return training_state.restore(last(run), objective, objective, trainer.optimizer.make(objective, loaded.config.optim))


def test_single_bits_beside_the_checkpoints(run: Path, capsys: pytest.CaptureFixture) -> None:
    rng = random.Random(1)
    for name in ("config.json", "metrics.jsonl", "router.jsonl", "LAST") * 3:
        with flipped(run / name, rng):
            assert name == "LAST" or _faulty(run), name
    capsys.readouterr()
    for text in ("0000020\n", "0000130\n", "../run/checkpoints/0000030\n", str(last(run))):
        (run / "LAST").write_text(text)
        if text == "0000020\n":
            assert checkpoint.load(run).step == 30 and "0000030 is newer and whole: that one is taken" in capsys.readouterr().err
        else:
            with pytest.raises(ValueError, match=r"LAST: points at '.*', which is no checkpoint in"):
                checkpoint.load(run)


def _faulty(folder: Path) -> bool:
    try:
        return bool(call(verify.main, folder))
    except ValueError:
        return True


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float16])
def test_weights_of_another_kind(run: Path, dtype: torch.dtype) -> None:
    path = last(run) / "alignment_ema.safetensors"
    save_file({name: x.to(dtype) for name, x in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"alignment_ema.safetensors: damaged or truncated \(not as it was written"):
        checkpoint.load(run)
    hash_again(last(run))
    with pytest.raises(ValueError, match=f"alignment_ema.safetensors: tensor .* holds {dtype}, the model torch.float32"):
        checkpoint.load(run)


def test_raw_weights_in_place_of_their_average(run: Path) -> None:
    shutil.copy(last(run) / "model" / checkpoint.WEIGHTS_FILE, last(run) / "ema" / checkpoint.WEIGHTS_FILE)
    with pytest.raises(ValueError, match="its SHA-256 is another"):
        checkpoint.load(run)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda s: s["config"]["model"].update(num_heads=1), "num_heads is 1, that of ema/config.json 2"),
        (lambda s: s["config"]["alignment"].update(tap=1), r"its taps are \[2\], its alignment's \[1\]"),
        (lambda s: s.update(taps=[1]), r"its taps are \[1\], its alignment's \[2\]"),
        (lambda s: s.update(time_convention="t=0 is noise"), "time convention is 't=0 is noise'"),
        (lambda s: s.update(latent_scale=float("nan")), "latent_scale is nan"),
        (lambda s: s.update(latent_scale=0.18), "latent_scale is 0.18, its cache's"),
        (lambda s: s["cache"].update(scale=float("nan")), "its scale is nan"),
        (lambda s: s.update(step=29), "step 29"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_state_that_contradicts_itself_or_what_lies_beside_it(run: Path, edit: Callable, match: str, old: bool) -> None:
    """With checksums made again, as by one who means it; and of runs that have none."""
    if old:
        without_checksums(run)
    path = last(run) / "state.json"
    state = json.loads(path.read_text())
    edit(state)
    path.write_text(json.dumps(state))
    if not old:
        hash_again(last(run))
    with pytest.raises(ValueError, match=f"state.json: .*{match}"):
        checkpoint.load(run)
    with pytest.raises(ValueError, match=r"state\.json"):
        call(main, *RESUME, "--out", run)


def test_runs_without_checksums_are_read_and_that_is_said_once(run: Path, smoke_run: Path, capsys: pytest.CaptureFixture) -> None:
    without_checksums(run)
    checksums.say_unchecked.cache_clear()
    for _ in range(2):
        assert checkpoint.load(run).sha == checkpoint.load(smoke_run).sha
    assert capsys.readouterr().err == f"note: {last(run)}: from before checksums were kept; damage in it may stay unseen\n"
    assert call(main, *RESUME, "--out", run) == 0
    assert call(main, "--preset", "smoke", "--trackers", "none", "--steps", 31, "--out", run.with_name("whole")) == 0
    assert_same_run(run.with_name("whole"), run, 31)


def test_single_bits_of_a_cache(many_shards: Path, tmp_path: Path) -> None:
    """Small files when it is opened; of the shards, whatever is read. What no reader looks at (padding), `gsnr verify` sees."""
    folder, rng = tmp_path / "cache", random.Random(2)
    shutil.copytree(many_shards, folder)
    whole = _rows(folder)
    listed = checksums.Manifest.read(folder).files
    noticed = 0
    for name in [*listed, checksums.MANIFEST] * 2:
        with flipped(folder / name, rng) as where:
            assert _faulty(folder), (name, where)
            try:
                rows = _rows(folder)
            except ValueError as error:
                assert str(folder) in str(error), error
                noticed += 1
                continue
        assert name.endswith(".arrow"), name
        assert all(np.array_equal(rows[column], whole[column]) for column in whole), (name, where)
    assert noticed > 2 * len(listed) - 3, "a shard is almost all data"
    assert call(verify.main, folder) == 0


def _rows(folder: Path) -> dict[str, np.ndarray]:
    header, splits = cache.open_cache(folder, ("G3",))
    columns = ("image_id", "label", "mean", "std", *header.groups)
    found = {split: splits[split].take(np.arange(splits[split].size), columns) for split in cache.SPLITS}
    return {f"{split} {name}": x for split, rows in found.items() for name, x in rows.items()} | splits["train"].statistics()


def test_caches_without_checksums_are_read_and_that_is_said_once(many_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(many_shards, folder)
    header = json.loads((folder / cache.HEADER).read_text())
    del header["rows_sha"]
    (folder / cache.HEADER).write_text(json.dumps(header))
    (folder / checksums.MANIFEST).unlink()
    whole = _rows(many_shards)
    for _ in range(2):
        assert all(np.array_equal(x, whole[name]) for name, x in _rows(folder).items())
    assert capsys.readouterr().err == f"note: {folder}: from before checksums were kept; damage in it may stay unseen\n"


def test_shards_that_are_not_where_they_were(many_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(many_shards, folder)
    one, two = sorted((folder / "train").glob("*.arrow"))[:2]
    for path in (one, two):
        path.rename(path.with_suffix(".aside"))
    one.with_suffix(".aside").rename(two)
    two.with_suffix(".aside").rename(one)
    with pytest.raises(ValueError, match=r"train: its rows are not those that were written \(shards exchanged"):
        _rows(folder)
    state = folder / "train" / arrow.STATE
    whole = json.loads(state.read_text())
    files = whole["_data_files"]
    for listed in (files[::-1], [files[0], files[0], files[2]]):
        state.write_text(json.dumps(whole | {"_data_files": listed}))
        with pytest.raises(ValueError, match=r"state.json: damaged or truncated"):
            cache.open_cache(folder, ())
        hash_again(folder)
        with pytest.raises(ValueError, match=r"state.json: damaged \(its shards are listed twice or out of order\)"):
            cache.open_cache(folder, ())


def test_a_scale_changed_by_hand(many_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(many_shards, folder)
    header = json.loads((folder / cache.HEADER).read_text())
    (folder / cache.HEADER).write_text(json.dumps(header | {"scale": 2.0}, indent=2) + "\n")
    with pytest.raises(ValueError, match=r"gsnr_cache.json: damaged or truncated \(not as it was written"):
        cache.open_cache(folder, ())


def test_other_rows_under_the_same_name(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Neither a resumption nor a probe takes them for those of the training."""
    path = last(run) / "state.json"
    state = json.loads(path.read_text())
    state["cache"]["rows_sha"]["train"] = "0" * 64
    path.write_text(json.dumps(state))
    hash_again(last(run))
    with pytest.raises(ValueError, match=r"trained on data whose rows_sha was \{'train': '0000.*; they were encoded elsewhere, or of other"):
        call(main, *RESUME, "--out", run)
    loaded = checkpoint.load(run)
    with pytest.raises(ValueError, match=r"holds other rows than when it was trained on them .* name it with --data"):
        opening.data_of(loaded, None)
    assert opening.data_of(loaded, "demo")[0].rows_sha["train"] != "0" * 64


def test_single_bits_of_whatever_is_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A small part of `python -m tests.attack flips`."""
    assert flips.attack(60, 0, tmp_path) == []
