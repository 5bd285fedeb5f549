"""Demo data, sample order, per-sample draws, the cache, the batch of a step."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from gsnr.train import children
from gsnr.train.data import cache, permutation, rng
from gsnr.train.data.batches import StepBatches, loader
from gsnr.train.data.heldout import heldout_batches, order, partners
from gsnr.train.demo import images as demo
from gsnr.train.demo.cache import demo_cache
from gsnr.train.prepare import encode
from gsnr.train.priors import normalise
from gsnr.train.runs.preemption import left_to_the_trainer
from tests.train.run_files import hash_again


def test_demo_is_deterministic_and_prefix_stable() -> None:
    for split in demo.SPLITS:
        a, la = demo.images(split, 6)
        b, lb = demo.images(split, 12)
        assert a.dtype == np.uint8 and a.shape == (6, 64, 64, 3)
        np.testing.assert_array_equal(a, b[:6])
        np.testing.assert_array_equal(la, lb[:6])
    assert not np.array_equal(demo.images("train", 6)[0], demo.images("train", 6, seed=1)[0])


def test_demo_splits_share_no_digit_and_no_photo_region() -> None:
    scans = demo._all_scans()
    rows = {split: {s.tobytes() for s in scans[split][0]} for split in demo.SPLITS}
    assert not rows["train"] & rows["heldout"]
    assert sum(len(scans[s][0]) for s in demo.SPLITS) == 1797
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    tiles = {split: [np.asarray(tile) for tile in demo._photo_regions()[split]] for split in demo.SPLITS}
    assert [len(tiles[split]) for split in demo.SPLITS] == [40, 40]
    assert sum(t.size for split in demo.SPLITS for t in tiles[split]) == sum(p.size for p in photos), "every pixel is in one tile, once"
    assert {len({t.tobytes() for t in tiles[split]}) for split in demo.SPLITS} == {40}
    assert not {t.tobytes() for t in tiles["train"]} & {t.tobytes() for t in tiles["heldout"]}
    assert min(min(t.shape[:2]) for split in demo.SPLITS for t in tiles[split]) >= 80, "the largest crop fits in a tile"


def test_demo_errors() -> None:
    with pytest.raises(ValueError, match="choose from train, heldout"):
        demo.images("test", 1)
    with pytest.raises(ValueError, match="512 exist"):
        demo.images("heldout", 513)
    with pytest.raises(ValueError, match="at least 1"):
        demo.images("train", 0)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 100, 1000, 4097])
def test_every_epoch_is_a_permutation(size: int) -> None:
    first = permutation.image_of(np.arange(3 * size), size, seed=5)
    for epoch in range(3):
        assert sorted(first[epoch * size : (epoch + 1) * size]) == list(range(size))
    if size > 60:
        assert not np.array_equal(first[:size], first[size : 2 * size]), "epochs differ"
        assert not np.array_equal(first[:size], permutation.image_of(np.arange(size), size, seed=6)), "seeds differ"
        assert abs(np.corrcoef(np.arange(size), first[:size])[0, 1]) < 4 / np.sqrt(size), "and look shuffled"


def test_draws_belong_to_the_sample_and_look_as_they_should() -> None:
    shape = (4, 8, 8)
    all_ = rng.draw(3, "train", np.arange(200), shape)
    some = rng.draw(3, "train", np.array([7, 150]), shape)
    np.testing.assert_array_equal(all_.noise[[7, 150]], some.noise)
    np.testing.assert_array_equal(all_.u[[7, 150]], some.u)
    assert abs(all_.noise.mean()) < 4 / np.sqrt(all_.noise.size)
    assert abs(all_.noise.std() - 1) < 0.02
    assert abs(np.corrcoef(all_.noise.ravel(), all_.posterior.ravel())[0, 1]) < 0.02
    assert 0.4 < all_.u.mean() < 0.6
    assert not np.array_equal(all_.noise, rng.draw(3, "fit", np.arange(200), shape).noise)
    assert not np.array_equal(all_.noise, rng.draw(4, "train", np.arange(200), shape).noise)


def test_draws_are_the_same_numbers_as_ever() -> None:
    """What was added later is drawn last: the numbers of the runs before stay theirs."""
    drawn = rng.draw(3, "fit", np.array([5]), (4, 2, 2))
    generator = np.random.Generator(np.random.Philox(key=np.array([3, 2], dtype=np.uint64), counter=np.array([0, 0, 0, 5], dtype=np.uint64)))
    u, drop_u = generator.random(2)
    posterior, noise = (generator.standard_normal((4, 2, 2), dtype=np.float32) for _ in range(2))
    offset_u = generator.random()
    assert (drawn.u[0], drawn.drop_u[0], drawn.offset_u[0], drawn.flip_u[0]) == (u, drop_u, offset_u, generator.random())
    np.testing.assert_array_equal(drawn.posterior[0], posterior)
    np.testing.assert_array_equal(drawn.noise[0], noise)


@pytest.fixture(scope="module")
def opened() -> tuple[Path, cache.Header, dict[str, cache.Split]]:
    folder = demo_cache(256, 256, "adaptive")  # the smoke run's
    return folder, *cache.open_cache(folder, ("G3", "G4"))


def test_cache_holds_what_the_encoder_says(opened) -> None:
    folder, header, splits = opened
    from gsnr.train import vae
    from gsnr.train.priors.features import encode as encode_features

    frozen = vae.load("demo")
    assert header.vae_sha == frozen.sha
    images, labels = demo.images("heldout", 256)
    pick = np.array([200, 3, 77])
    rows = splits["heldout"].take(pick, ("mean", "std", "label", "image_id", "G3", "G4"))
    chosen = [layer for layer in frozen.layers if layer.group in ("G3", "G4")]
    mean, std, groups = encode_features(frozen, encode.to_pixels(images[pick]), chosen, 8)
    np.testing.assert_allclose(rows["mean"], mean.numpy(), atol=1e-4)
    np.testing.assert_allclose(rows["std"], std.numpy(), atol=1e-4)
    for g in groups:
        assert rows[g].dtype == np.float16
        np.testing.assert_allclose(rows[g], groups[g].numpy(), atol=2e-2, rtol=2e-3)
    np.testing.assert_array_equal(rows["label"], labels[pick])
    np.testing.assert_array_equal(rows["image_id"], pick)
    assert demo_cache(256, 256, "adaptive") == folder
    assert header.layers["G3"][0] == "8:down_blocks.2.resnets.0"


def test_cache_is_a_datasets_folder(opened) -> None:
    import datasets

    folder, _, splits = opened
    back = datasets.load_from_disk(str(folder))
    assert set(back) == {"train", "heldout"}
    row = back["train"][5]
    np.testing.assert_allclose(np.array(row["G4"], dtype=np.float16), splits["train"].take(np.array([5]), ("G4",))["G4"].ravel())


def test_damaged_caches_are_named(opened, tmp_path: Path) -> None:
    folder, _, _ = opened
    with pytest.raises(ValueError, match="not a gsnr cache"):
        cache.open_cache(tmp_path, ())
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    fewer = json.loads((bare / cache.HEADER).read_text())
    fewer["groups"] = {group: fewer["groups"][group] for group in ("G3", "G4")}
    (bare / cache.HEADER).write_text(json.dumps(fewer))
    hash_again(bare)
    with pytest.raises(ValueError, match=r"no features of G1 \(it has G3, G4\); prepare it again with --features G1"):
        cache.open_cache(bare, ("G1",))
    with pytest.raises(ValueError, match=r"no features of teacher .*--teacher facebook/dinov2-base"):
        cache.open_cache(bare, ("teacher",))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = next((copy / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        cache.open_cache(copy, ("G3",))
    header = json.loads((copy / cache.HEADER).read_text())
    (copy / cache.HEADER).write_text(json.dumps(header | {"schema_version": 9}))
    (copy / cache.STATISTICS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"statistics.safetensors: missing or damaged"):
        cache.CachedSplit(copy, "heldout", cache.read_header(folder)).statistics()
    with pytest.raises(ValueError, match="schema version 9"):
        cache.open_cache(copy, ())
    (copy / cache.HEADER).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        cache.open_cache(copy, ())


def test_a_split_is_pickled_by_its_place(opened) -> None:
    """A spawned data worker opens the cache again; it is not sent 50 MB."""
    _, _, splits = opened
    sent = pickle.dumps(splits["train"])
    assert len(sent) < 5000
    index = np.array([7, 250])
    np.testing.assert_array_equal(pickle.loads(sent).take(index, ("G4",))["G4"], splits["train"].take(index, ("G4",))["G4"])


def step_batches(splits, **changes) -> StepBatches:
    return changes.pop("made", StepBatches)(**({"split": splits["train"], "groups": ("G3",), "batch": 8, "seed": 1, "label_dropout": 0.5} | changes))


class Stuck(StepBatches):
    """Its first batch is there, the others never come."""

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        if step:
            time.sleep(10_000)
        return super().__getitem__(step)


class Damaged(StepBatches):
    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        raise ValueError("shard: damaged\nin its second row")


def test_a_worker_that_is_stuck_holds_nobody(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """They ignore the SIGTERM that torch sends them."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    _, _, splits = opened
    before = set(multiprocessing.active_children())
    reading = loader(step_batches(splits, made=Stuck), 0, 9, 2, left_to_the_trainer)
    assert len(next(reading)["label"]) == 8
    (one, two) = set(multiprocessing.active_children()) - before
    reading.close()
    for process in (one, two):
        process.join(10)
    assert not one.is_alive() and not two.is_alive()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_keeps_its_lines(opened, workers: int) -> None:
    _, _, splits = opened
    with pytest.raises(ValueError, match=r"^shard: damaged\nin its second row$"):
        next(loader(step_batches(splits, made=Damaged), 0, 1, workers))


class Idle(torch.utils.data.Dataset):
    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return {"pid": torch.tensor(os.getpid()), "full": torch.zeros(1)}


def _at_work(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()


def _reads_until_killed(begin: Callable[[int], None], tell: Connection) -> None:
    reading = loader(Idle(), 0, 10**6, 1, begin)  # type: ignore[arg-type]
    tell.send(int(next(reading)["pid"]))
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems leave it to torch, whose watch takes five seconds")
@pytest.mark.parametrize("begin", [children.bind_worker, left_to_the_trainer])
def test_a_data_worker_ends_with_a_process_that_was_killed(begin: Callable[[int], None]) -> None:
    heard, tell = multiprocessing.Pipe()
    reader = multiprocessing.get_context("fork").Process(target=_reads_until_killed, args=(begin, tell))
    reader.start()
    worker = heard.recv()
    assert _at_work(worker)
    reader.kill()
    reader.join()
    deadline = time.monotonic() + 3
    while _at_work(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _at_work(worker)


def test_step_does_not_depend_on_world_size_or_workers(opened) -> None:
    _, _, splits = opened
    whole = step_batches(splits)[40]
    halves = [step_batches(splits, rank=r, world=2)[40] for r in range(2)]
    for key in whole:
        assert torch.equal(whole[key], torch.cat([h[key] for h in halves])), key
    for workers in (0, 2):
        got = list(loader(step_batches(splits), 39, 42, workers))
        assert len(got) == 3
        for key in whole:
            assert torch.equal(whole[key], got[1][key]), key
    assert 0 < whole["label_drop"].float().mean() < 1
    with pytest.raises(ValueError, match="not a multiple of the 3 processes"):
        step_batches(splits, world=3)


def test_latents_are_scaled_posterior_samples(opened) -> None:
    _, header, splits = opened
    batch = step_batches(splits)[0]
    samples = np.arange(8)
    rows = splits["train"].take(permutation.image_of(samples, 256, 1), ("mean", "std"))
    drawn = rng.draw(1, "train", samples, header.latent_shape)
    expected = header.scale * (rows["mean"].astype(np.float64) + rows["std"].astype(np.float64) * drawn.posterior)
    np.testing.assert_allclose(batch["latent"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_heldout_samples_are_the_same_in_every_bin(opened) -> None:
    _, _, splits = opened
    _, low = next(heldout_batches(splits["heldout"], 16, 0, "heldout", 0.0, 0.5, ()))
    _, high = next(heldout_batches(splits["heldout"], 16, 0, "heldout", 0.5, 1.0, ()))
    assert torch.equal(low["noise"], high["noise"]) and torch.equal(low["latent"], high["latent"])
    torch.testing.assert_close(low["t"] + 0.5, high["t"])
    assert (low["t"] < 0.5).all() and (high["t"] >= 0.5).all()
    with pytest.raises(ValueError, match="has 256"):
        next(heldout_batches(splits["heldout"], 257, 0, "heldout", 0.0, 1.0, ()))


def test_statistics_are_those_of_the_train_split(opened) -> None:
    """Mean and standard deviation per layer and channel over images and tokens, in float64 from the rows."""
    _, header, splits = opened
    rows = splits["train"].take(np.arange(256), ("G1", "G4", "teacher"))
    found = splits["heldout"].statistics()
    for group, f in rows.items():
        f = f.astype(np.float64)
        np.testing.assert_allclose(found[f"{group}_mean"], f.mean((0, 3, 4)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[f"{group}_std"], f.std((0, 3, 4)), rtol=1e-4, atol=1e-6)
    assert set(found) == {f"{group}_{which}" for group in header.groups for which in ("mean", "std")}


def test_standardised_features_have_mean_zero_and_deviation_one(opened) -> None:
    _, header, splits = opened
    normaliser = normalise.make("standardise", {group: header.groups[group][:2] for group in ("G3", "G4")})
    normaliser.calibrate(splits["train"])
    rows = splits["train"].take(np.arange(256), ("G3", "G4"))
    for group, f in rows.items():
        z = normaliser(group, torch.from_numpy(f).float())
        torch.testing.assert_close(z.mean((0, 3, 4)), torch.zeros(header.groups[group][:2]), rtol=0, atol=1e-3)
        torch.testing.assert_close(z.std((0, 3, 4), correction=0), torch.ones(header.groups[group][:2]), rtol=1e-3, atol=1e-3)


def test_shuffled_samples_are_other_images_with_their_own_noise_at_the_same_times(opened) -> None:
    _, _, splits = opened
    split = splits["heldout"]
    partner = partners(split.size, 3)
    index, plain = next(heldout_batches(split, 16, 0, "heldout", 0.0, 1.0, ("G4",)))
    _, other = next(heldout_batches(split, 16, 0, "heldout", 0.0, 1.0, ("G4",), partner_N=partner))
    assert torch.equal(plain["t"], other["t"])
    whole, own = next(heldout_batches(split, 256, 0, "heldout", 0.0, 1.0, (), batch=256))
    where = np.argsort(whole)[partner[index]]
    assert all(torch.equal(other[key], own[key][where]) for key in ("noise", "offset_u", "latent"))
    assert not any(torch.equal(plain[key], other[key]) for key in ("noise", "offset_u"))
    rows = split.take(partner[index], ("G4", "label"))
    assert torch.equal(other["G4"], torch.from_numpy(rows["G4"])) and torch.equal(other["label"], torch.from_numpy(rows["label"]))


def test_the_first_images_are_the_same_for_every_seed_and_of_all_classes(opened) -> None:
    _, _, splits = opened
    firsts = [next(heldout_batches(splits["heldout"], 32, seed, "heldout", 0.0, 1.0, ()))[0] for seed in (0, 1)]
    assert np.array_equal(*firsts)
    for size in (1, 2, 257):
        assert sorted(order(size)) == list(range(size))
    sorted_by_class = np.repeat(np.arange(10), 26)[order(260)[:64]]
    assert len(np.unique(sorted_by_class)) == 10, "data that are sorted by class"


@pytest.mark.parametrize("size", [2, 3, 10, 257])
def test_shuffling_never_keeps_an_image_and_depends_on_the_seed(size: int) -> None:
    index = np.arange(size)
    partner = partners(size, 0)
    assert (partner != index).all() and sorted(partner) == list(index)
    assert np.array_equal(partner, partners(size, 0)) and (size < 10 or not np.array_equal(partner, partners(size, 1)))


def test_shuffling_leaves_no_trace_of_the_order_of_the_data() -> None:
    """Sorted by class, the partner's class says nothing of the image's: a tenth of the pairs share it (i + n/2 gave none, or all, of them)."""
    for labels in (np.repeat(np.arange(10), 200), np.tile(np.arange(10), 200)):
        same = (labels[partners(2000, 0)] == labels).mean()
        assert abs(same - 0.1) < 4 * np.sqrt(0.09 / 2000)


def test_shuffling_within_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 300)
    labels[:2] = (90, 91)  # alone in their classes
    partner = partners(300, 0, labels)
    assert (partner != np.arange(300)).all() and sorted(partner) == list(range(300))
    assert (labels[partner] == labels)[2:].all() and list(partner[:2]) == [1, 0]


def test_latents_have_unit_scale(opened) -> None:
    """scaling_factor in the shipped VAE's config makes final latents have a standard deviation near 1."""
    _, _, splits = opened
    latent = torch.cat([step_batches(splits, batch=64)[s]["latent"] for s in range(4)])
    assert 0.85 < latent.std() < 1.15
