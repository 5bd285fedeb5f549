"""`gsnr.Monitor`: measures the gradient signal-to-noise ratio every K steps of any training loop, and leaves the training as it was.

    monitor = gsnr.Monitor(model, {"velocity": velocity, "align": align}, batches, every=500, compare=[("align", "velocity")])
    for step in range(1, steps + 1):
        train_one_step()
        for name, result in monitor(step).items():      # empty between measurements
            print(step, name, result["all"].gsnr, result["all"].ci())
    print(monitor.verdict(), monitor.alerts)

Random state, gradients, hooks, modes and weights are those of a run without it, so a run with it on is the same run, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gsnr import alerts
from gsnr.balance import Balance, balance
from gsnr.batches import Batch
from gsnr.comparison import Comparison
from gsnr.engines import Common, Loss, Losses
from gsnr.estimates import Estimate
from gsnr.identity import Index
from gsnr.measurement import compare, measure
from gsnr.moments import ALL
from gsnr.ranks import NotFinite
from gsnr.results import Result
from gsnr.selection import Groups, Parameters
from gsnr.surroundings import FLOAT32

Pair = tuple[str, str]


@contextmanager
def evaluating(model: nn.Module) -> Any:
    """Eval mode, and back to each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Monitor:
    """Call it with the step; it returns name -> Result on steps that are multiples of `every`, and {} on others.

    model, engine, parameters, groups and what follows: as in `gsnr.measure`. losses: name -> loss.
    batches     as in `gsnr.measure`, or bin -> batches: then names are "loss/bin". They should stay the same throughout (held-out samples, each
                with its own t and noise in each bin), so that curves over steps differ by the weights alone; pass `index` where they hold
                what the weights make (features of the moving average), which would else give other signs every time.
    compare     pairs (auxiliary, main) of losses, measured together: I, cosine and balance rho (`gsnr.balance`) in `compared` and `balances`.
    common      as in `gsnr.compare`: what all losses start from.
    weight      lambda of the auxiliary losses, for rho: a number, or a function (step, bin) -> number.
    group       group of parameters that `verdict`, `balances` and `alerts` are about: what both losses reach, without projectors.
    eval_mode   measure in eval mode (default), where dropout and batch norm do not interfere.

    With bins or pairs the results keep no sums, and do not merge. alerts: what the last measurement warns of, see `gsnr.alerts`; where gradients
    are not finite they say where that begins, and the loss has no result. Raises ValueError for `every` < 1, no losses or a pair of losses
    that there are not; measuring raises as `gsnr.measure` does otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: dict[str, Loss],
        batches: Iterable[Batch] | Mapping[str, Iterable[Batch]],
        *,
        every: int,
        compare: Sequence[Pair] = (),
        common: Common | None = None,
        weight: float | Callable[[int, str], float] = 1.0,
        group: str = ALL,
        engine: str = "auto",
        parameters: Parameters | None = None,
        groups: Groups | None = None,
        interval: bool = True,
        draws: int = 1,
        chunk: int | None = None,
        memory_bytes: int | None = None,
        device: str | torch.device | None = None,
        distributed: bool = True,
        index: Index | None = None,
        precision: str = FLOAT32,
        eval_mode: bool = True,
    ) -> None:
        if every < 1:
            raise ValueError(f"every = {every}: must be at least 1 step")
        if not isinstance(losses, dict) or not losses:
            raise ValueError("a monitor needs at least one loss to measure: name -> loss")
        for name in (name for pair in compare for name in pair):
            if name not in losses:
                raise ValueError(f"compare: there is no loss {name!r}; choose from {', '.join(losses)}")
        self.model, self.losses, self.every = model, losses, every
        bins = dict(batches) if isinstance(batches, Mapping) else {"": batches}
        self.bins = {name: list(own) if isinstance(own, Iterator) else own for name, own in bins.items()}
        self.pairs, self.common, self.weight, self.group, self.eval_mode = list(compare), common, weight, group, eval_mode
        self.options: dict[str, Any] = {"engine": engine, "parameters": parameters, "groups": groups, "draws": draws, "chunk": chunk}
        self.options |= {"memory_bytes": memory_bytes, "device": device, "distributed": distributed, "index": index, "precision": precision}
        self.interval = interval
        self.measurements = 0
        self.seconds = 0.0
        self.alerts: list[str] = []
        self.compared: dict[str, dict[str, Comparison]] = {}
        self.balances: dict[str, Balance] = {}
        self._latest: dict[str, Result] = {}
        self._step = 0
        self._fading = alerts.Fading()
        self._started: float | None = None

    def __call__(self, step: int) -> dict[str, Result]:
        started = time.perf_counter()
        self._started = self._started or started
        if step % self.every:
            return {}
        self._step, self._latest, self.compared, self.alerts = step, {}, {}, alerts.training_gradient(self.model)
        if self.eval_mode:
            with evaluating(self.model):
                self._measure()
        else:
            self._measure()
        self._conclude()
        self.measurements += 1
        self.seconds += time.perf_counter() - started
        return dict(self._latest)

    def _measure(self) -> None:
        """Fills `_latest` and `compared`, bin by bin."""
        mains = {b: [a for a, other in self.pairs if other == b] for _, b in self.pairs}
        alone = [name for name in self.losses if all(name not in pair for pair in self.pairs)]
        for bin_name, batches in self.bins.items():
            for b, firsts in mains.items():
                self._compare(bin_name, batches, firsts, b)
            for name in alone:
                try:
                    result = measure(self.model, self._by_itself(name), batches, interval=self.interval, **self.options)
                except NotFinite as error:
                    self._not_finite(name, bin_name, batches, error)
                    continue
                self._latest[_named(name, bin_name)] = result if len(self.bins) == 1 else _light(result)

    def _compare(self, bin_name: str, batches: Iterable[Batch], firsts: list[str], b: str) -> None:
        try:
            losses = {a: self.losses[a] for a in firsts}
            found = compare(self.model, losses, self.losses[b], batches, common=self.common, **self.options)
        except NotFinite as error:
            for name in (*firsts, b):
                self._not_finite(name, bin_name, batches, error)
            return
        for a, both in found.items():
            self.compared[_named(f"{a}:{b}", bin_name)] = both.comparisons
            self._latest |= {_named(name, bin_name): _light(result) for name, result in ((a, both.a), (b, both.b))}

    def _by_itself(self, name: str) -> Loss:
        return Losses((self.losses[name],), self.common).alone(0)

    def _not_finite(self, name: str, bin_name: str, batches: Iterable[Batch], error: NotFinite) -> None:
        where = alerts.blame(self.model, self._by_itself(name), batches, next(self.model.parameters()).device)
        self.alerts.append(f"{_named(name, bin_name)}: {error}; {where}")

    def _conclude(self) -> None:
        """Balances over all bins, and what there is to warn of."""
        self.balances = {}
        for name, own in self._by_loss(self.compared).items():
            if all(comparisons[self.group].has_interval for comparisons in own.values()):
                weights = [self.weight if isinstance(self.weight, int | float) else self.weight(self._step, bin_name) for bin_name in own]
                self.balances[name] = balance([comparisons[self.group] for comparisons in own.values()], weights)
        estimates: dict[str, list[Estimate]] = {
            name: [result[self.group] for result in own.values()] for name, own in self._by_loss(self._latest).items()
        }
        self.alerts += [*self._fading.see(estimates), *alerts.heavy(estimates), *alerts.tipped(self.balances)]

    def _by_loss(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """loss or pair -> bin -> value."""
        found: dict[str, dict[str, Any]] = {}
        for name in [*self.losses, *(f"{a}:{b}" for a, b in self.pairs)]:
            own = {bin_name: values[_named(name, bin_name)] for bin_name in self.bins if _named(name, bin_name) in values}
            if own:
                found[name] = own
        return found

    def scalars(self) -> dict[str, float]:
        """Of the last measurement, for a tracker: "gsnr/LOSS", "gsnr/LOSS/BIN" and their ends "_low" and "_high"; "rho/A:B" and "cosine/A:B"."""
        found: dict[str, float] = {}
        for name, result in self._latest.items():
            e = result[self.group]
            low, high = e.ci() if e.has_interval else (float("nan"),) * 2
            found |= {f"gsnr/{name}": e.gsnr, f"gsnr/{name}_low": low, f"gsnr/{name}_high": high}
        for name, b in self.balances.items():
            low, high = b.ci()
            found |= {f"rho/{name}": b.rho, f"rho/{name}_low": low, f"rho/{name}_high": high, f"cosine/{name}": b.cosine}
        return found

    def verdict(self) -> str:
        """The last measurement in one line: what is resolved; of pairs helping, independent, opposing or balanced, by rho with its 95 % interval
        (`gsnr.balance`); what measuring cost so far."""
        if not self.measurements:
            return self.cost
        said = []
        for name, own in self._by_loss(self._latest).items():
            seen = sum(not result[self.group].below_detection for result in own.values())
            in_bins = f" in {seen} of {len(own)} bins" if len(own) > 1 and seen else ""
            said.append(f"{name} {'resolved' if seen else 'not resolved'}{in_bins}")
        said += [f"{name} {b.state} ({b})" for name, b in self.balances.items()]
        warned = [f"{len(self.alerts)} alerts"] if self.alerts else []
        return "; ".join([f"step {self._step}: {said[0] if said else 'nothing measured'}", *said[1:], *warned, self.cost])

    @property
    def share(self) -> float:
        """Fraction of the time since the first call that went into measuring."""
        elapsed = time.perf_counter() - self._started if self._started is not None else 0.0
        return self.seconds / elapsed if elapsed else 0.0

    @property
    def cost(self) -> str:
        """What it cost so far, in words."""
        if not self.measurements:
            return "no measurement yet"
        each = self.seconds / self.measurements
        return f"{self.measurements} measurements of {each:.2f} s each, {100 * self.share:.1f} % of the time"


def _named(name: str, bin_name: str) -> str:
    return f"{name}/{bin_name}" if bin_name else name


def _light(result: Result) -> Result:
    """Without the sums, which take twice the parameters' memory for each loss and bin."""
    return replace(result, moments=replace(result.moments, plus={}, minus={}))
