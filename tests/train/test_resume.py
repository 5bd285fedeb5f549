"""Checkpoints survive kills; a resumed run is, bit for bit, the uninterrupted one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gsnr
from gsnr.train import noising
from gsnr.train.command import main
from gsnr.train.data import cache
from gsnr.train.data.heldout import order
from gsnr.train.data.rng import draw
from gsnr.train.demo.cache import demo_cache
from gsnr.train.runs import checkpoint, training_state
from tests.conftest import REPO, call
from tests.forked import ranks
from tests.gsnr import naive
from tests.gsnr.problems import naive_gradients
from tests.train.run_files import assert_same_run, hash_again, lines, tensors


@pytest.mark.parametrize("stop", [15, 13])
def test_stopped_and_resumed_equals_uninterrupted(smoke_run: Path, tmp_path: Path, stop: int) -> None:
    """At 15 of 30, and at 13, in the middle of a window of metrics (log_every is 5), which is carried over too."""
    out = tmp_path / "resumed"
    assert call(main, "--preset", "smoke", "--out", out, "--steps", stop) == 0
    assert (out / "LAST").read_text().strip() == f"{stop:07d}"
    assert call(main, "--preset", "smoke", "--out", out, "--steps", "30", "--resume") == 0
    assert_same_run(smoke_run, out, 30)


PARTS = '[{"name": "uniform", "source": "deep", "tap": 1}, {"name": "sra", "tap": 2, "teacher_tap": 3}]'


@pytest.mark.parametrize(
    "words",
    [
        ("--alignment", "sra"),
        ("--alignment", "multi", "--alignment.parts", PARTS),
        ("--alignment.features", "standardise", "--alignment.router", "content"),
        ("--alignment.router", "lookup", "--alignment.t-encoding", "fourier"),
        ("--alignment", "repa", "--alignment.projector-width", "16", "--accumulate", "2", "--data.workers", "1"),
        ("--accumulate", "4", "--data.workers", "2"),
    ],
    ids=lambda words: " ".join(words[1:4:2]),
)
def test_whatever_is_trained_resumes_bit_for_bit(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Each alignment that has more state or inputs than AHPA; micro-batches; data workers."""
    common = ("--preset", "smoke", "--trackers", "none", *words, "--out")
    assert call(main, *common, tmp_path / "whole", "--steps", 7) == 0
    assert call(main, *common, tmp_path / "parts", "--steps", 3) == 0
    assert call(main, *common, tmp_path / "parts", "--steps", 7, "--resume") == 0
    one, two = (tensors(checkpoint.locate(tmp_path / run)) for run in ("whole", "parts"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def _train_on(out: Path) -> None:
    """What the killed child does: trains, or goes on training."""
    os.setpgrp()
    torch.set_num_threads(1)
    main(["--preset", "smoke", "--trackers", "none", "--out", str(out), "--steps", "40", "--save-every", "4", "--resume"])


def test_kill_minus_9_while_training_loses_only_the_steps_since_the_last_save(tmp_path: Path) -> None:
    """Killed at random moments until it is through; the run that is left is the uninterrupted one."""
    out, rng, kills = tmp_path / "killed", random.Random(1), 0

    def last(run: Path) -> str:
        return (run / "LAST").read_text() if (run / "LAST").is_file() else ""

    while True:
        before = last(out)
        child = multiprocessing.get_context("fork").Process(target=_train_on, args=(out,))
        child.start()
        if rng.random() < 0.3:  # perhaps before it saves anything
            child.join(rng.uniform(0, 1))
        else:  # some time after a save
            until = time.monotonic() + 60  # a forked child may find a lock that a thread of its parent held: then it is killed as well
            while child.is_alive() and last(out) == before and time.monotonic() < until:
                child.join(0.01)
            child.join(rng.uniform(0, 0.2))
        if not child.is_alive():
            assert child.exitcode == 0
            break
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    assert kills > 2
    whole = multiprocessing.get_context("fork").Process(target=_train_on, args=(tmp_path / "whole",))  # with as many threads
    whole.start()
    whole.join()
    assert_same_run(tmp_path / "whole", out, 40)


def test_a_kill_between_saves_loses_only_the_steps_since(smoke_run: Path, tmp_path: Path) -> None:
    """As after a kill at step 27: logs are ahead of the last checkpoint, one line is cut short, a half-written save lies about."""
    out = tmp_path / "killed"
    assert call(main, "--preset", "smoke", "--out", out, "--steps", "20") == 0
    for log in ("metrics.jsonl", "router.jsonl"):
        with (out / log).open("a") as handle:
            handle.write(json.dumps({"step": 25, "loss": 1}) + '\n{"step": 2')
    leftover = out / "checkpoints" / ".0000030.123"
    leftover.mkdir()
    (leftover / "state.json").write_text("{")
    orphan = out / "checkpoints" / "0000030"  # renamed, but killed before LAST was moved
    orphan.mkdir()
    assert call(main, "--preset", "smoke", "--out", out, "--resume") == 0
    assert_same_run(smoke_run, out, 30)
    assert not leftover.exists()


def test_finished_run_resumed_is_a_no_op(smoke_run: Path, capsys: pytest.CaptureFixture) -> None:
    before = {p: p.stat().st_mtime_ns for p in smoke_run.rglob("*") if p.name != "lock"}
    assert call(main, "--preset", "smoke", "--out", smoke_run, "--resume") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in smoke_run.rglob("*") if p.name != "lock"}


def test_refusals(smoke_run: Path, tmp_path: Path) -> None:
    before = (smoke_run / "config.json").read_bytes()
    with pytest.raises(ValueError, match="--resume, or name a new folder"):
        call(main, "--preset", "smoke", "--out", smoke_run)
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.002"):
        call(main, "--preset", "smoke", "--out", smoke_run, "--resume", "--optim.lr", "0.5")
    other = tmp_path / "other_vae"
    shutil.copytree(smoke_run, other)
    state = checkpoint.locate(other) / "state.json"
    state.write_text(state.read_text().replace(checkpoint.load(other).header.vae_sha, "0" * 64))
    hash_again(state.parent)
    with pytest.raises(ValueError, match="trained on data whose vae_sha was '0000"):
        call(main, "--preset", "smoke", "--out", other, "--resume", "--steps", 31)
    with pytest.raises(ValueError, match="seed was 0"):
        call(main, "--preset", "smoke", "--out", smoke_run, "--resume", "--seed", "1")
    with pytest.raises(ValueError, match="can only grow"):
        call(main, "--preset", "smoke", "--out", smoke_run, "--resume", "--steps", "29")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is not a run"):
        call(main, "--preset", "smoke", "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    assert before == (smoke_run / "config.json").read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "nan"
    words = ("--preset", "smoke", "--steps", 12, "--log-every", 100, "--max-skipped", 3, "--out", out)
    real, calls = noising.velocity_loss, []

    def breaking(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(predicted, true) * (float("inf") if len(calls) > 3 else 1.0)

    monkeypatch.setattr(noising, "velocity_loss", breaking)
    with pytest.raises(ValueError, match=r"not finite in \d steps in a row, at or before step 10"):
        call(main, *words)
    assert not (out / "LAST").exists() and not list((out / "checkpoints").iterdir())


def test_bf16_trains_and_resumes(tmp_path: Path) -> None:
    """The precision of every full-size preset, on the CPU: three steps, a save, two more."""
    out = tmp_path / "bf16"
    words = ("--preset", "smoke", "--precision", "bf16", "--log-every", 1, "--out", out)
    assert call(main, *words, "--steps", 3) == 0
    assert call(main, *words, "--steps", 5, "--resume") == 0
    assert [x["step"] for x in lines(out / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert all(p.dtype == torch.float32 for p in gsnr.load_model(out).parameters())


def test_an_empty_folder_that_is_there_already_is_used_and_one_that_failed_is_not_left(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call(main, "--preset", "smoke", "--alignment", "none", "--steps", 1, "--out", empty) == 0
    with pytest.raises(ValueError, match="not a gsnr cache"):
        call(main, "--preset", "sit-b2", "--precision", "no", "--data.path", tmp_path, "--out", tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_by_a_relative_path_belongs_to_its_run(smoke_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(checkpoint.locate(smoke_run))
    assert checkpoint.load(Path(".")).run_folder == smoke_run.resolve()
    shutil.copytree(checkpoint.locate(smoke_run), tmp_path / "alone")
    alone = checkpoint.load(tmp_path / "alone")
    with pytest.raises(ValueError, match="say where to write with --out"):
        checkpoint.run_output(alone, "probes")


def _save_forever(run: Path) -> None:
    """What the killed child does: one checkpoint after another."""
    os.setpgrp()
    torch.set_num_threads(1)
    loaded = checkpoint.load(run)
    from gsnr.train.objective import Objective

    objective = Objective(loaded.model, loaded.alignment).requires_grad_(True)
    optimizer = torch.optim.AdamW(objective.parameters())
    step = loaded.step
    while True:
        step += 1
        with torch.no_grad():
            for p in objective.parameters():
                p.fill_(step)
        training_state.save(
            run, step=step, objective=objective, ema=objective, optimizer=optimizer, config=loaded.config, header=loaded.header, extra={}
        )


def test_kill_minus_9_while_saving_leaves_a_good_checkpoint(plain_run: Path, tmp_path: Path) -> None:
    """20 kills at random moments of a process that does nothing but save: what LAST names loads, whole and of one step."""
    run = tmp_path / "run"
    shutil.copytree(plain_run, run)
    rng = random.Random(0)
    reached = []
    for _ in range(20):
        child = multiprocessing.get_context("fork").Process(target=_save_forever, args=(run,))
        child.start()
        time.sleep(rng.uniform(0.05, 0.4))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the child died of something else"
        for weights in ("ema", "raw"):
            loaded = checkpoint.load(run, weights)
            if loaded.step > 5:
                assert {float(p.detach().mean()) for p in loaded.model.parameters()} == {float(loaded.step)}
        reached.append(loaded.step)
    assert reached == sorted(reached) and reached[-1] > 12, "checkpoints were made, and none was lost"


def test_load_model(smoke_run: Path) -> None:
    model = gsnr.load_model(smoke_run)
    assert not model.training
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([3, 10])
    with torch.no_grad():
        assert model(x, t, y).shape == x.shape
    raw = gsnr.load_model(smoke_run / "checkpoints" / "0000020", weights="raw")
    assert not torch.equal(raw.final_layer.linear.weight, model.final_layer.linear.weight)
    with pytest.raises(ValueError, match="choose from ema, raw"):
        gsnr.load_model(smoke_run, weights="mean")  # type: ignore[arg-type]


def test_checkpoint_says_what_it_is(smoke_run: Path) -> None:
    state = json.loads((checkpoint.locate(smoke_run) / "state.json").read_text())
    assert state["time_convention"] == "t=1 is noise"
    assert state["taps"] == [2] and state["step"] == 30
    assert state["cache"]["vae_sha"] and state["latent_scale"] == state["cache"]["scale"]
    assert set(state["versions"]) >= {"gsnr", "torch", "diffusers"}


MONITORED = ("--gsnr-every", "10", "--gsnr-images", "24")


def test_two_processes_train_the_same_run(smoke_run: Path, monitored_run: Path, tmp_path: Path) -> None:
    """2 ranks over gloo for 20 steps, resumed on 1: weights within 1e-5 of the uninterrupted run of one process, both times."""
    out = tmp_path / "ddp"
    ranks(2, ["train", "--preset", "smoke", "--steps", "20", "--out", str(out), *MONITORED], REPO)
    assert call(main, "--preset", "smoke", "--out", out, "--resume", *MONITORED) == 0
    for step in ("0000020", "0000030"):
        one, two = (tensors(run / "checkpoints" / step) for run in (smoke_run, out))
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    for a, b in zip(lines(smoke_run / "metrics.jsonl"), lines(out / "metrics.jsonl"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], abs=1e-4)

    alone = {(x["step"], x["loss"], x["group"]): x for x in lines(monitored_run / "gsnr.jsonl")}
    for x in lines(out / "gsnr.jsonl"):
        other = alone[x["step"], x["loss"], x["group"]]
        assert x["n"] == other["n"] == 24
        assert (x["gsnr"] is None) == (other["gsnr"] is None)
        assert x["gsnr"] is None or x["gsnr"] == pytest.approx(other["gsnr"], rel=1e-2, abs=1e-3), "weights differ by 1e-5 already"


@pytest.fixture(scope="module")
def monitored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("monitored") / "run"
    assert call(main, "--preset", "smoke", "--out", out, "--steps", "20", *MONITORED) == 0
    assert call(main, "--preset", "smoke", "--out", out, "--resume", *MONITORED) == 0
    return out


def test_monitoring_needs_its_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--gsnr-images 9999: the held-out split"):
        call(main, "--preset", "smoke", "--out", tmp_path / "run", "--gsnr-every", "5", "--gsnr-images", "9999")
    assert not (tmp_path / "run").exists()


def test_monitoring_changes_no_bit_of_the_run(smoke_run: Path, monitored_run: Path) -> None:
    """--gsnr-every on, stopped and resumed, equals the run without it: weights, EMA, optimizer and every logged number."""
    for step in ("0000020", "0000030"):
        a, b = (tensors(run / "checkpoints" / step) for run in (smoke_run, monitored_run))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name
    clocks = ("it_per_s", "wait_share", "wall_s")
    for a, b in zip(lines(smoke_run / "metrics.jsonl"), lines(monitored_run / "metrics.jsonl"), strict=True):
        assert {k: v for k, v in a.items() if k not in clocks} == {k: v for k, v in b.items() if k not in clocks}
    logged = lines(monitored_run / "gsnr.jsonl")
    assert sorted({x["step"] for x in logged}) == [0, 10, 20, 30]
    of_blocks = {"block 1", "block 2", "block 3", "attention", "MLP", "adaLN"}
    assert {x["group"] for x in logged} == {"all", "backbone", "embedders", *of_blocks, "final layer", "label", "projector", "router"}
    assert {x["loss"] for x in logged} == {"velocity", "align"}
    assert {x["engine"] for x in logged} == {"ghost"}
    first = next(x for x in logged if (x["step"], x["loss"], x["group"]) == (0, "velocity", "block 1"))
    assert first["gsnr"] is None and first["signal"] == 0, "adaLN-Zero: no block moves the loss at initialisation"


def test_monitored_numbers_against_whole_gradients(monitored_run: Path) -> None:
    """The last line of velocity and backbone: from the last weights and held-out images, one float64 .backward() a sample, by the definitions.

    The monitor's gradients are float32: within 1e-4 of the interval's width."""
    loaded = checkpoint.load(monitored_run, "raw")
    _, splits = cache.open_cache(demo_cache(256, 256, "adaptive"), ())
    images = order(256)[:24]
    rows = splits["heldout"].take(images, ("mean", "std", "label"))
    drawn = draw(0, "heldout", images, loaded.header.latent_shape)
    t = drawn.u[:, None, None, None]
    x0 = (rows["mean"] + rows["std"] * drawn.posterior.astype(np.float64)) * loaded.header.scale
    x_t, v = (1 - t) * x0 + t * drawn.noise, drawn.noise - x0
    data = {name: torch.from_numpy(x) for name, x in {"x": x_t, "v": v, "t": drawn.u, "y": rows["label"]}.items()}
    model = loaded.model.double()
    backbone = nn.ModuleList([model.x_embedder, model.t_embedder, model.blocks, model.final_layer])
    g_NP = naive_gradients(backbone, lambda _, b: (model(b["x"], b["t"], b["y"]) - b["v"]).square().flatten(1).mean(1), data)
    low, high = naive.jackknife_interval(naive.ratio(g_NP), naive.leave_one_out(g_NP))
    last = next(x for x in lines(monitored_run / "gsnr.jsonl") if (x["step"], x["loss"], x["group"]) == (30, "velocity", "backbone"))
    found = (last["gsnr_low"], last["gsnr"], last["gsnr_high"])
    assert found == pytest.approx((low, naive.ratio(g_NP), high), rel=0, abs=1e-4 * (high - low))


def test_the_demo_objective_learns(smoke_run: Path) -> None:
    logged = lines(smoke_run / "metrics.jsonl")
    assert [x["step"] for x in logged] == [5, 10, 15, 20, 25, 30]
    assert logged[-1]["align"] < logged[0]["align"] and logged[-1]["velocity"] < logged[0]["velocity"]
    router = lines(smoke_run / "router.jsonl")
    assert [x["step"] for x in router] == [0, 5, 10, 15, 20, 25, 30]
    assert router[0]["beta"][0] == [0.5, 0.5]
