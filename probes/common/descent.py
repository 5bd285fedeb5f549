"""Projectors on their way down their own loss by gradient, until a held-out part no longer gains; see `gsnr.probes.common.fit`.

What is on its way is kept now and then, so that an interrupted fit goes on where it was, to the same bits. Shapes: C target channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gsnr.probes.common.candidates import Candidate
from gsnr.train.data.batches import Batch

RATES = (1e-3, 2.5e-4, 6e-5)  # of AdamW, one after another
EVERY, PATIENCE, GAIN = 50, 3, 1e-3  # steps between looks at the held-out part; looks without a gain of this share of the loss
KEPT_EVERY = 10 * EVERY  # steps between keeping all of it
KEY = "descents"
Step = tuple[Batch, dict[str, Batch], Tensor]  # a batch; control -> other images with other noise at the same times; hidden states of the batch


class Keeper(Protocol):
    """What keeps tensors under a key; `gsnr.probes.common.resume_cache`."""

    def kept(self, key: str) -> dict[str, Tensor] | None: ...

    def keep(self, key: str, tensors: dict[str, Tensor]) -> None: ...

    def drop(self, key: str) -> None: ...


def _last_layer(candidate: Candidate) -> nn.Linear | nn.Conv2d | None:
    """The last layer of a projector that has a bias."""
    assert candidate.head is not None
    layers = [m for m in candidate.head.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers and layers[-1].bias is not None else None


class Descent:
    """One projector on its way down its own loss, from the mean target, or where it is without one."""

    def __init__(self, candidate: Candidate, mean_C: Tensor | None) -> None:
        assert candidate.head is not None
        self.candidate, self.head, self.steps, self.rate = candidate, candidate.head, 0, 0
        layer = _last_layer(candidate)
        if mean_C is not None and layer is not None and layer.bias is not None and layer.bias.shape == mean_C.shape:
            layer.weight.data.zero_()
            layer.bias.data.copy_(mean_C)
        self.best, self.counted, self.stale, self.kept = float("inf"), float("inf"), 0, copy.deepcopy(self.head.state_dict())
        self.start()

    def start(self) -> None:
        """From the best weights so far, at the next rate."""
        if self.best < float("inf"):
            self.head.load_state_dict(self.kept)
        self.stale = 0
        if not self.done:
            self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=RATES[self.rate], weight_decay=0.0)

    def state(self) -> dict[str, Tensor]:
        """All that the steps to come depend on."""
        found = {f"head|{name}": x for name, x in self.head.state_dict().items()} | {f"kept|{name}": x for name, x in self.kept.items()}
        found |= {f"adam|{index}|{name}": x for index, of in self.optimizer.state_dict()["state"].items() for name, x in of.items()}
        return found | {"numbers": torch.tensor([self.steps, self.rate, self.best, self.counted, self.stale], dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` gave."""
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "kept": {}, "adam": {}}
        for key, x in state.items():
            where, _, name = key.partition("|")
            if name:
                parts[where][name] = x
        steps, rate, self.best, self.counted, stale = state["numbers"].tolist()
        self.steps, self.rate, self.kept = int(steps), int(rate), parts["kept"]
        self.start()
        self.stale = int(stale)
        self.head.load_state_dict(parts["head"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, x in parts["adam"].items():
            index, _, name = key.partition("|")
            moments.setdefault(int(index), {})[name] = x
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})

    @property
    def done(self) -> bool:
        return self.rate >= len(RATES)

    def step(self, step: Step) -> None:
        loss = self.candidate.loss(step[2], self.candidate.target_BTC(*step)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1

    def look(self, held: list[Step]) -> None:
        """After some steps: is there still a gain on the held-out part?"""
        loss, _ = judged(self.candidate, held)
        gains = loss < self.counted * (1 - GAIN)
        self.counted, self.stale = (loss, 0) if gains else (self.counted, self.stale + 1)
        if loss < self.best:
            self.best, self.kept = loss, copy.deepcopy(self.head.state_dict())
        if self.stale >= PATIENCE:
            self.rate += 1
            self.start()


@torch.no_grad()
def judged(candidate: Candidate, held: list[Step], constant_C: Tensor | None = None) -> tuple[float, float]:
    """Mean loss on the held-out part of the projector, and of a constant (NaN without one)."""
    assert candidate.aligned is not None
    losses: list[list[Tensor]] = [[], []]
    for step in held:
        target = candidate.target_BTC(*step)
        losses[0].append(candidate.aligned.discrepancy(candidate.aligned.projector(step[2]), target))
        if constant_C is not None:
            losses[1].append(candidate.aligned.discrepancy(constant_C.expand_as(target), target))
    own, constant = (float(torch.cat(each).double().mean()) if each else float("nan") for each in losses)
    return own, constant


def descend(batches: Callable[[int], Iterable[Step]], most: int, runs: dict[str, Descent], held: list[Step], keeper: Keeper | None = None) -> None:
    """Fits by gradient, all on the same batches, each until it has converged or made `most` steps. batches: those from a step on."""
    first = 0
    if keeper is not None and (before := keeper.kept(KEY)) is not None:
        first = int(before["step"])
        for name, run in runs.items():
            run.restore({key.removeprefix(f"{name}|"): x for key, x in before.items() if key.startswith(f"{name}|")})
    else:
        for run in runs.values():
            run.look(held)
    bar = tqdm(batches(first), total=most, initial=first, desc="fitting projectors", unit="step", mininterval=1.0, leave=False)
    for number, step in enumerate(bar, start=first + 1):
        going = [run for run in runs.values() if not run.done]
        if not going:
            break
        for run in going:
            run.step(step)
            if number % EVERY == 0 or number == most:
                run.look(held)
        if keeper is not None and number % KEPT_EVERY == 0:
            states = {f"{name}|{key}": x for name, run in runs.items() for key, x in run.state().items()}
            keeper.keep(KEY, states | {"step": torch.tensor(number)})
    for run in runs.values():
        run.head.load_state_dict(run.kept)
