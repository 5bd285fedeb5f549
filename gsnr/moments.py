"""Sufficient statistics of per-sample gradients: sums per parameter, ||g_i||^2 per group. They add over batches and ranks, and merge from disk.

The sum S is kept as two halves, `plus` and `minus`, of samples with signs s_i = +1 and -1 (by `gsnr.hashing`): D = plus - minus yields
tr(Cov^2), and halves of different samples yield products without a sample meeting itself. Scalars are float64; sums keep the parameters' dtype,
at least float32, unless that loses the answer: then everything is measured again in float64 (`Moments.beyond_float32`). A sum that no gradient
has reached takes no memory: a zero, expanded to its shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsnr.estimates import Array, Estimate, noise, trace_cov_sq
from gsnr.files import parse_json, replacing
from gsnr.gradients import wide

Labels = dict[str, tuple[str, ...]]  # parameter name -> the groups it counts towards
Sums = dict[str, Tensor]
ALL = "all"  # the group every selected parameter belongs to
FORMAT = "gsnr sums 1"
PIECE, PIECE_CUDA = 1 << 16, 1 << 24  # elements of a sum that are taken to float64 at once
SQUARES = (1e-30, 1e30)  # between them ||g_i||^2, its parts and its products with sums stay within float32's range
CANCELLING = 1e-4  # noise over mean ||g_i||^2, 1 / (1 + gsnr), below which rounding of float32 shows: by 2 per mil at a gsnr of 1e5


def by_group(values: dict[str, Tensor], labels: Labels) -> dict[str, Array]:
    """Adds per-parameter values up over each group's parameters; group -> numpy float64. "all" comes first."""
    totals: dict[str, Tensor] = {}
    for name, own in labels.items():
        for group in own:
            totals[group] = totals[group] + values[name] if group in totals else values[name]
    found = torch.stack(list(totals.values())).double().cpu().numpy()  # one transfer
    return dict(zip(totals, found, strict=True))


@dataclass(repr=False)
class Moments:
    """Of one loss. q, draw_q: group -> (n,) ||g_i||^2, and sum over draws of ||g_ik||^2 where there are several; signs, losses: (n,)."""

    labels: Labels
    plus: Sums
    minus: Sums
    draws: int = 1
    q: dict[str, Array] = field(default_factory=dict)
    draw_q: dict[str, Array] = field(default_factory=dict)
    signs: Array = field(default_factory=lambda: np.empty(0))
    losses: Array = field(default_factory=lambda: np.empty(0))

    @classmethod
    def empty(cls, labels: Labels, selected: Any, draws: int, double: bool = False) -> Moments:
        """No samples yet; `selected`: name -> parameter; double: sums in float64."""
        groups = dict.fromkeys(group for own in labels.values() for group in own)
        as_sum = lambda p: torch.float64 if double else wide(p.detach().new_empty(0)).dtype
        plus, minus = ({name: torch.zeros((), dtype=as_sum(p), device=p.device).expand(p.shape) for name, p in selected.items()} for _ in "+-")
        q, draw_q = ({group: np.empty(0) for group in groups} for _ in range(2))
        return cls(labels, plus, minus, draws, q, draw_q)

    def __repr__(self) -> str:
        draws = f", {self.draws} draws each" if self.draws > 1 else ""
        return f"Moments({self.n} samples{draws}, {len(self.plus)} parameters, {len(self.q)} groups)"

    @property
    def n(self) -> int:
        return len(self.signs)

    def append(self, q: dict[str, Tensor], draw_q: dict[str, Tensor], signs: Array, losses: Tensor) -> None:
        """What tells the samples of one chunk apart; their gradients have been added to `plus` and `minus`."""
        for mine, new in ((self.q, by_group(q, self.labels)), (self.draw_q, by_group(draw_q, self.labels) if draw_q else {})):
            mine.update({group: np.concatenate([mine[group], value]) for group, value in new.items()})
        self.signs = np.concatenate([self.signs, signs])
        self.losses = np.concatenate([self.losses, losses.double().cpu().numpy().reshape(-1, self.draws).mean(1)])

    def reached(self, name: str) -> bool:
        """Whether any gradient of a parameter has come in."""
        return self.plus[name].untyped_storage().nbytes() >= self.plus[name].nbytes

    def reach(self, name: str) -> None:
        """Makes room for the gradients of a parameter."""
        if not self.reached(name):
            self.plus[name], self.minus[name] = (
                torch.zeros_like(s, memory_format=torch.contiguous_format) for s in (self.plus[name], self.minus[name])
            )

    def total(self, name: str) -> Tensor:
        """S of one parameter."""
        return self.plus[name] + self.minus[name] if self.reached(name) else self.plus[name]

    def difference(self, name: str) -> Tensor:
        """D of one parameter."""
        return self.plus[name] - self.minus[name] if self.reached(name) else self.plus[name]

    def to_host(self) -> None:
        """Moves the sums to the CPU."""
        for half in (self.plus, self.minus):
            half.update({name: s.cpu() for name, s in half.items() if s.device.type != "cpu"})

    def named(self, names: Mapping[str, str]) -> Moments:
        """Of some parameters only, by other names: old -> new. ||g_i||^2 stay those of all; so it is for leaving out what no gradient reaches."""
        labels = {new: self.labels[old] for old, new in names.items()}
        plus, minus = ({new: half[old] for old, new in names.items()} for half in (self.plus, self.minus))
        return replace(self, labels=labels, plus=plus, minus=minus)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples. Raises ValueError where parameters, groups or draws differ."""
        if self.labels != other.labels or self.draws != other.draws or any(self.plus[n].shape != other.plus[n].shape for n in self.plus):
            raise ValueError("results of different parameters, groups or draws do not merge")

        def both(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
            return {group: np.concatenate([value, b[group]]) for group, value in a.items()}

        plus, minus = (
            {name: s + theirs[name].to(s.device) for name, s in mine.items()} for mine, theirs in ((self.plus, other.plus), (self.minus, other.minus))
        )
        signs, losses = np.concatenate([self.signs, other.signs]), np.concatenate([self.losses, other.losses])
        return Moments(self.labels, plus, minus, self.draws, both(self.q, other.q), both(self.draw_q, other.draw_q), signs, losses)

    def product(self, other: Moments, mine: str = "total", theirs: str = "total") -> dict[str, float]:
        """group -> inner product of two sums ("plus", "minus" or "total") over the group's parameters."""

        def pieces(moments: Moments, which: str, name: str) -> Iterator[Tensor]:
            halves = [getattr(moments, half)[name].flatten() for half in ("plus", "minus") if which in (half, "total")]
            size = PIECE_CUDA if halves[0].is_cuda else PIECE
            return (torch.stack(piece).sum(0, dtype=torch.float64) for piece in zip(*(half.split(size) for half in halves), strict=True))

        values = {}
        for name, s in self.plus.items():
            values[name] = torch.zeros((), dtype=torch.float64, device=s.device)
            if self.reached(name) and other.reached(name):
                pairs = zip(pieces(self, mine, name), pieces(other, theirs, name), strict=True)
                values[name] = torch.stack([torch.dot(a, b.to(s.device)) for a, b in pairs]).sum()
        return {group: float(value) for group, value in by_group(values, self.labels).items()}

    @property
    def narrow(self) -> bool:
        """Whether any sum is in float32."""
        return any(s.dtype == torch.float32 for s in self.plus.values())

    @cached_property
    def sum_sq(self) -> dict[str, float]:
        """group -> ||S||^2. To be asked for once all samples are in."""
        return self.product(self)

    def beyond_float32(self) -> str | None:
        """Why these numbers, if they were summed in float32, are not to be relied on, naming the first group; None where they are."""
        for group, q in self.q.items() if self.narrow else ():
            most, sum_sq = q.max(initial=0.0), self.sum_sq[group]
            if most == 0 and sum_sq == 0:
                continue
            if not SQUARES[0] < most < SQUARES[1]:
                return f"group {group!r}: gradients of a square norm of {most:.2g}, whose products leave the range of float32"
            if self.n > 1 and noise(sum_sq, q.sum(), self.n) < CANCELLING * q.mean():
                return f"group {group!r}: the noise is below {CANCELLING:g} of the square norms, and would drown in the rounding of float32"
        return None

    def estimates(self, r: dict[str, Array] | None, e: dict[str, Array] | None) -> dict[str, Estimate]:
        """group -> Estimate. r, e: group -> (n,) g_i . S and g_i . D (NaN where not taken) in the order of the samples, or None."""
        return {
            group: Estimate(
                group=group,
                q_n=q,
                r_n=None if r is None else r[group],
                sum_sq=self.sum_sq[group],
                cov_sq=float("nan") if r is None or e is None else trace_cov_sq(q, r[group], e[group], self.signs),
                draws=self.draws,
                draw_q_n=self.draw_q[group] if self.draws > 1 else None,
            )
            for group, q in self.q.items()
        }

    def save(self, path: Path, extra: dict[str, str]) -> None:
        """One safetensors file, written aside and renamed."""
        from safetensors.torch import save_file

        tensors = {f"{half}/{name}": s.contiguous().cpu() for half in ("plus", "minus") for name, s in getattr(self, half).items()}
        tensors |= {f"{kind}/{group}": torch.from_numpy(v) for kind in ("q", "draw_q") for group, v in getattr(self, kind).items()}
        tensors |= {"signs": torch.from_numpy(self.signs), "losses": torch.from_numpy(self.losses)}
        metadata = {"format": FORMAT, "labels": json.dumps(self.labels), "draws": str(self.draws)} | extra
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            save_file(tensors, aside, metadata)

    @classmethod
    def load(cls, path: Path) -> tuple[Moments, dict[str, str]]:
        """What `save` wrote, and its metadata. Raises ValueError, naming the file, for a missing, damaged or foreign one."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise ValueError(f"{path}: no such file of saved sums")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({str(error).splitlines()[0]})") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: not saved sums of this version of gsnr (format {metadata.get('format')!r}, wanted {FORMAT!r})")

        try:
            made = cls._from_tensors(tensors, metadata)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path}: damaged sums ({type(error).__name__}: {error})") from error
        n = made.n
        arrays = {"losses": made.losses, **{f"q/{group}": q for group, q in made.q.items()}}
        bad = [name for name, x in arrays.items() if x.shape != (n,) or not np.isfinite(x).all()]
        bad += [name for name in made.labels if made.plus[name].shape != made.minus[name].shape]
        if bad or n < 1:
            raise ValueError(f"{path}: damaged sums ({bad[0] if bad else 'no samples'})")
        return made, metadata

    @classmethod
    def _from_tensors(cls, tensors: Sums, metadata: dict[str, str]) -> Moments:
        def part(kind: str) -> dict[str, Tensor]:
            return {key.removeprefix(kind + "/"): value for key, value in tensors.items() if key.startswith(kind + "/")}

        labels = {name: tuple(own) for name, own in parse_json(metadata["labels"]).items()}
        order = dict.fromkeys(group for own in labels.values() for group in own)
        q, draw_q = ({group: part(kind)[group].numpy() for group in order} for kind in ("q", "draw_q"))
        plus, minus = ({name: part(half)[name] for name in labels} for half in ("plus", "minus"))
        return cls(labels, plus, minus, int(metadata["draws"]), q, draw_q, tensors["signs"].numpy(), tensors["losses"].numpy())
