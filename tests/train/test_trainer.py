"""What a step may be made of without becoming another step, and what ends, prunes and shows a run."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from gsnr.train import opening, presets, trainer
from gsnr.train.command import main
from gsnr.train.config import nest, resolve
from gsnr.train.data.batches import StepBatches
from gsnr.train.runs import checkpoint, training_state
from gsnr.train.runs import folder as runfolder
from gsnr.train.step import Window, check_finite, optimisation_step
from tests.conftest import REPO, call
from tests.forked import Forked
from tests.train.run_files import assert_same_run, lines, tensors

PLAIN = ("--preset", "smoke", "--trackers", "none")


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in tensors(checkpoint.locate(out)).items() if not k.startswith("optimizer")}


def assert_close_runs(a: Path, b: Path, tolerance: float) -> None:
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps of smoke."""
    out = tmp_path_factory.mktemp("ten") / "run"
    assert call(main, *PLAIN, "--steps", 10, "--out", out) == 0
    return out


@pytest.mark.parametrize("words", [("--accumulate", 4), ("--checkpointing", "true"), ("--accumulate", 2, "--checkpointing", "true")])
def test_the_same_step_in_other_ways(ten: Path, tmp_path: Path, words: tuple) -> None:
    """Micro-batches and recomputed activations round otherwise, no more: the weights after ten steps agree to 1e-5 (a gradient's last bits are
    amplified by AdamW where the gradient is tiny), those after one step to 1e-6."""
    assert call(main, *PLAIN, "--steps", 10, "--out", tmp_path / "run", *words) == 0
    assert_close_runs(ten, tmp_path / "run", 1e-5)
    assert [x["loss"] for x in lines(tmp_path / "run" / "metrics.jsonl")] == pytest.approx(
        [x["loss"] for x in lines(ten / "metrics.jsonl")], rel=1e-5
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch.compile itself, while it traces
def test_compiled_blocks_are_the_same_blocks(ten: Path, tmp_path: Path) -> None:
    """One graph for all blocks; and a run goes on without it."""
    assert call(main, *PLAIN, "--steps", 5, "--out", tmp_path / "run", "--compile", "true", "--save-every", 5) == 0
    assert call(main, *PLAIN, "--steps", 10, "--out", tmp_path / "run", "--save-every", 5, "--resume") == 0
    assert_close_runs(ten, tmp_path / "run", 1e-4)


class Training:
    """The trainer's parts, so that single steps can be given by hand."""

    def __init__(self, **changes: str) -> None:
        self.config = resolve(presets.find("smoke"), nest(changes))
        self.accelerator = Accelerator(cpu=True)
        header, self.splits = opening.open_data(self.config)
        self.raw = trainer.make_objective(self.config, header)
        self.ema = copy.deepcopy(self.raw)
        adamw = torch.optim.AdamW(self.raw.parameters(), lr=1e-3, fused=True)
        self.objective, self.optimizer = self.accelerator.prepare(self.raw, adamw)
        self.batches = StepBatches(split=self.splits["train"], groups=self.raw.alignment.needs, batch=16, seed=0, label_dropout=0.1)

    def step(self, batch: dict[str, torch.Tensor], accumulate: int = 1) -> dict[str, torch.Tensor]:
        return optimisation_step(self.accelerator, self.objective, self.raw, self.ema, self.optimizer, batch, 2.0, accumulate)

    def state(self) -> dict[str, torch.Tensor]:
        flat = training_state._flatten(self.optimizer, [name for name, _ in self.raw.named_parameters()])
        return {k: v.clone() for k, v in (self.raw.state_dict() | flat).items()}


def test_one_step_of_micro_batches_is_the_large_one() -> None:
    after = []
    for accumulate in (1, 2, 8):
        torch.manual_seed(0)
        training = Training()
        metrics = training.step(training.batches[0], accumulate)
        after.append((training.state(), {k: float(v) for k, v in metrics.items()}))
    for state, metrics in after[1:]:
        assert metrics == pytest.approx(after[0][1], rel=1e-5)
        for name, value in after[0][0].items():
            if name.endswith("exp_avg"):  # a tenth of the gradient
                torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max() + 1e-12))


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    """Good, bad, good equals good, good, bit for bit."""
    torch.manual_seed(0)
    one, window = Training(), Window({}, torch.device("cpu"))
    window.add(one.step(one.batches[0]))
    before = one.state()
    bad = one.batches[1]
    bad["latent"][3, 0, 0, 0] = torch.inf
    window.add(one.step(bad))
    assert all(torch.equal(value, before[name]) for name, value in one.state().items())
    window.add(one.step(one.batches[2]))
    torch.manual_seed(0)
    two = Training()
    two.step(two.batches[0])
    two.step(two.batches[2])
    assert all(torch.equal(value, two.state()[name]) for name, value in one.state().items())
    totals = window.totals(one.accelerator)
    assert (totals["steps"], totals["skipped"], totals["worst"], totals["streak"]) == (2, 1, 1, 0)
    assert np.isfinite(list(totals.values())).all()


def test_too_many_in_a_row_are_an_error_even_across_windows_and_saves() -> None:
    window = Window({}, torch.device("cpu"))
    nan = {name: torch.tensor(float("nan")) for name in ("loss", "velocity", "grad_norm")} | {"skipped": torch.tensor(1.0)}
    for _ in range(2):
        window.add(nan)
    accelerator = Accelerator(cpu=True)
    window = Window(window.emptied().totals(accelerator), torch.device("cpu"))  # as through a checkpoint
    window.add(nan)
    totals = window.totals(accelerator)
    assert totals["streak"] == 3 and totals["skipped"] == 1
    check_finite(7, totals, 3)
    with pytest.raises(ValueError, match="not finite in 3 steps in a row, at or before step 7"):
        check_finite(7, totals, 2)


def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been(smoke_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", *PLAIN, "--out", str(out), "--steps", "100000", "--save-every", "100000"]
    process = Forked(words, REPO, tmp_path / "printed")
    deadline = time.time() + 120
    while time.time() < deadline and not ((out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.end(60) == 0, process.error
    stopped = int((out / "LAST").read_text())
    assert f"stopped by SIGTERM after {stopped} of 100000 steps; continue with --resume" in (tmp_path / "printed").read_text()
    steps = stopped + 3
    config = json.loads((out / "config.json").read_text())
    config["config"]["steps"] = steps
    del config["sha256"]
    (out / "config.json").write_text(json.dumps(config))
    assert call(main, *PLAIN, "--out", out, "--steps", steps, "--save-every", 100000, "--resume") == 0
    whole = tmp_path / "whole"
    assert call(main, *PLAIN, "--out", whole, "--steps", steps, "--save-every", 100000) == 0
    for name, value in tensors(checkpoint.locate(whole)).items():
        assert torch.equal(value, tensors(checkpoint.locate(out))[name]), name


def test_keeping_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call(main, *PLAIN, "--steps", 8, "--save-every", 1, "--keep-last", 2, "--keep-every", 3, "--out", out) == 0
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["0000003", "0000006", "0000007", "0000008"]
    runfolder.prune(out, 0, 0)
    assert len(list((out / "checkpoints").iterdir())) == 4
    (out / "LAST").write_text("0000003\n")
    runfolder.prune(out, 1, 0)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["0000003", "0000008"]


def test_samples_and_trackers_leave_the_training_alone(smoke_run: Path, tmp_path: Path) -> None:
    """Bit for bit the run without; a grid of the averaged weights every 15 steps; curves for TensorBoard."""
    out = tmp_path / "run"
    assert call(main, "--preset", "smoke", "--sample-every", 15, "--out", out, "--keep-last", 5) == 0
    assert_same_run(smoke_run, out, 30, configs=False)
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["0000015.png", "0000030.png"]
    with Image.open(out / "samples" / "0000030.png") as image:
        assert np.asarray(image).std() > 5
    assert list((out / "tensorboard").rglob("events.out.tfevents.*"))
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["wait_share"] <= 1 and last["skipped"] == 0


def test_bad_options_of_the_trainer(tmp_path: Path) -> None:
    for words, message in (
        (("--trackers", "mlflow"), "choose from tensorboard, wandb, none"),
        (("--accumulate", 3), "--batch 16 is not a multiple of --accumulate 3"),
        (("--accumulate", 0), "--accumulate 0: must be at least 1"),
        (("--keep-last", -1), "--keep-last -1: must be at least 0"),
        (("--compile", "perhaps"), "compile: 'perhaps' is not of type bool"),
    ):
        with pytest.raises(ValueError, match=message):
            call(main, "--preset", "smoke", "--out", tmp_path / "run", *words)
    if "wandb" not in sys.modules and not _installed("wandb"):
        with pytest.raises(ValueError, match=r"--trackers wandb: the package is not installed \(pip install wandb\)"):
            call(main, "--preset", "smoke", "--out", tmp_path / "run", "--trackers", "wandb")
    assert not (tmp_path / "run").exists()


def test_two_commands_do_not_train_in_one_folder(smoke_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    logs = (out / "metrics.jsonl").read_text()
    holds = f"from gsnr.locks import Lock; from pathlib import Path; held = Lock(Path({str(out / 'lock')!r})); print(); input()"
    with subprocess.Popen([sys.executable, "-c", holds], cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(ValueError, match=f"{out}: another process is at work there"):
            call(main, "--preset", "smoke", "--trackers", "none", "--steps", 31, "--resume", "--out", out)
        other.kill()
    assert (out / "metrics.jsonl").read_text() == logs
    assert call(main, "--preset", "smoke", "--trackers", "none", "--steps", 31, "--resume", "--out", out) == 0, "the lock ended with its process"


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_from_init(smoke_run: Path, tmp_path: Path) -> None:
    """And so does --resume where there is no run yet."""
    for out, words in ((tmp_path / "begun", ()), (tmp_path / "resumed", ("--resume",))):
        assert call(main, "--preset", "smoke", "--init", smoke_run, "--steps", 1, "--log-every", 1, "--out", out, *words) == 0
    assert_same_run(tmp_path / "begun", tmp_path / "resumed", 1)
