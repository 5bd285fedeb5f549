"""The monitor in other people's loops: REPA's and SiT's losses, bit-identical training, and the real packages where they are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gsnr
from gsnr import integrations
from tests.gsnr.problems import PROBLEMS


class Repa(nn.Module):
    """The interface of REPA's SiT: velocity, and the projected state of one teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.time, self.label = nn.Linear(1, 8), nn.Embedding(3, 8)
        self.projectors = nn.ModuleList([nn.Linear(8, 5)])

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        h = self.patch(x.flatten(2).transpose(1, 2)) + (self.time(t[:, None]) + self.label(y))[:, None]
        h = h + torch.tanh(self.hidden(h))
        return self.out(h).transpose(1, 2).reshape(x.shape), [self.projectors[0](h)]


class Sit(Repa):
    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, t, y)[0]


def heldout(n: int = 12) -> list[tuple]:
    rng = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=rng)
    return [(draw(n, 4, 2, 2), torch.arange(n) % 3, [draw(n, 4, 5)]) for _ in range(2)]


def test_repa() -> None:
    """Losses of one bin against REPA's formulas in numpy; the projector is no part of the trunk; rho by the weight."""
    torch.manual_seed(0)
    model = Repa()
    monitor = gsnr.integrations.repa(model, heldout(), every=2, bins=2, weight=0.5)
    assert monitor(1) == {}
    found = monitor(2)
    assert list(found) == ["align/t 0-0.5", "velocity/t 0-0.5", "align/t 0.5-1", "velocity/t 0.5-1"]
    (batch, _), (late, _) = monitor.bins.values()
    assert bool((batch["t"] < 0.5).all() and (late["t"] >= 0.5).all()) and torch.equal(batch["target"], late["target"])
    x, t = heldout()[0][0].numpy(), batch["t"].numpy()[:, None, None, None]
    e = batch["target"].numpy() + x
    np.testing.assert_allclose(batch["x_t"].numpy(), (1 - t) * x + t * e, atol=1e-6)
    v, (projected,) = model(batch["x_t"], batch["t"], batch["y"])
    p, z = projected.detach().numpy(), heldout()[0][2][0].numpy()
    cos = (p * z).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(z, axis=-1)
    np.testing.assert_allclose(found["align/t 0-0.5"].losses[:12], -cos.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found["velocity/t 0-0.5"].losses[:12], ((v.detach().numpy() - (e - x)) ** 2).mean((1, 2, 3)), rtol=1e-5)
    b, c = monitor.balances["align:velocity"], [own["trunk"] for own in monitor.compared.values()]
    assert b.pull == pytest.approx(0.5 * sum(one.a.signal for one in c))
    assert set(monitor.compared["align:velocity/t 0-0.5"]) == {"all", "trunk", "projector"}
    assert "align:velocity" in monitor.verdict()


def test_sit() -> None:
    """Its t = 1 is data, and its velocity has the other sign: at 1 - t the same loss as REPA's of the negated model."""
    model = Sit()
    monitor = integrations.sit(model, [(x, y) for x, y, _ in heldout()], every=1, bins=4)
    assert len(monitor(1)) == 4
    batch = monitor.bins["t 0.75-1"][0]
    x = heldout()[0][0]
    t = batch["t"].view(-1, 1, 1, 1)
    torch.testing.assert_close(batch["x_t"], t * x + (1 - t) * (x - batch["target"]))
    with pytest.raises(ValueError, match="no held-out batch"):
        integrations.sit(model, [], every=1)


def problem() -> tuple:
    model, loss, data = PROBLEMS["mlp"]()
    return model, loss, data, gsnr.Monitor(model, {"loss": loss}, [data], every=2)


def test_accelerate(tmp_path: Path) -> None:
    """With gradient accumulation: once an optimizer step; weights are those of a run without it."""
    accelerate = pytest.importorskip("accelerate")

    def trained(monitored: bool) -> tuple[nn.Module, list[int]]:
        model, loss, data, monitor = problem()
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        wrapped, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        after, seen = integrations.accelerate(monitor, accelerator), []
        for micro in range(8):
            with accelerator.accumulate(wrapped):
                accelerator.backward(loss(wrapped, data).mean())
                if monitored and after():
                    seen.append(micro)
                optimizer.step()
                optimizer.zero_grad()
        return model, seen

    (plain, _), (watched, seen) = trained(False), trained(True)
    assert seen == [3, 7]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, loss, data, monitor = problem()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict:
            return {"loss": loss(self.inner, {"x": x, "y": labels}).mean()}

    rows = [{"x": x, "labels": y} for x, y in zip(data["x"], data["y"], strict=True)]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    trainer = transformers.Trainer(model=Wrapped(), args=args, train_dataset=rows, callbacks=[integrations.transformers(monitor)])
    trainer.train()
    logged = [line for line in trainer.state.log_history if "gsnr/loss" in line]
    assert [line["step"] for line in logged] == [2, 4] and monitor.measurements == 2


def test_lightning() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    model, loss, data, monitor = problem()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def training_step(self, batch: dict, _: int) -> torch.Tensor:
            return loss(self.inner, batch).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=4, callbacks=[integrations.lightning(monitor)], **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader([data] * 4, batch_size=None))
    assert monitor.measurements == 2
