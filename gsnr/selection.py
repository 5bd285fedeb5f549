"""Which parameters are measured, and which groups each counts towards: by functions of their names, or by names and globs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from gsnr.moments import ALL, Labels

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Patterns = str | Sequence[str]  # a name or glob ("blocks.*.attn.*"; * also matches dots), or a list of them
Parameters = Callable[[str], bool] | Patterns
Groups = Callable[[str], str | tuple[str, ...]] | Mapping[str, Patterns]


def _matching(patterns: Any, names: list[str], where: str) -> set[str]:
    """The names that one pattern or more matches. Raises ValueError for a pattern that matches none, with names near it."""
    several = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, list | tuple | set) else []
    if not several:
        raise ValueError(f"{where}: {patterns!r} is no name or glob of parameters, nor a list of them")
    found: set[str] = set()
    for pattern in several:
        if not isinstance(pattern, str):
            raise ValueError(f"{where}: a {type(pattern).__name__} is no name or glob of parameters")
        matched = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not matched:
            inside = [f"{pattern}.*"] if any(name.startswith(pattern + ".") for name in names) else []
            near = inside or difflib.get_close_matches(pattern, names, cutoff=0.5) or names[:3]
            raise ValueError(f"{where}: {pattern!r} matches no trainable parameter; near it: {', '.join(near)}")
        found |= matched
    return found


def select(model: nn.Module, parameters: Parameters | None) -> dict[str, nn.Parameter]:
    """name -> parameter for all that require grad and are asked for. Raises ValueError where none is, and for a glob without match."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if parameters is None or callable(parameters):
        chosen = {name: p for name, p in trainable.items() if parameters is None or parameters(name)}
    elif not trainable:
        chosen = {}
    else:
        asked = _matching(parameters, list(trainable), "parameters")
        chosen = {name: p for name, p in trainable.items() if name in asked}
    if not chosen:
        names = f" ({', '.join(list(trainable)[:5])}{', ...' if len(trainable) > 5 else ''})" if trainable else ": none requires grad"
        raise ValueError(f"no parameter selected out of {len(trainable)} trainable ones{names}")
    for name, p in chosen.items():
        if p.dtype not in DTYPES or p.layout != torch.strided:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"parameter {name!r} is {p.dtype}, {p.layout}: gradients are measured of dense {kinds}; leave it out with parameters=")
    return chosen


def _function_of(groups: Groups, selected: list[str]) -> Callable[[str], Any]:
    if callable(groups):
        return groups
    if ALL in groups:
        raise ValueError(f"groups: {ALL!r} always holds every selected parameter; give that group another label")
    members = {group: _matching(patterns, selected, f"groups[{group!r}]") for group, patterns in groups.items()}
    return lambda name: tuple(group for group, own in members.items() if name in own)


def label(selected: list[str], groups: Groups | None) -> Labels:
    """name -> labels, "all" always first. Raises ValueError for a label that is none, or a glob that matches none."""
    function = None if groups is None else _function_of(groups, selected)
    labels: Labels = {}
    for name in selected:
        own = () if function is None else function(name)
        if not isinstance(own, str) and not (isinstance(own, tuple) and all(isinstance(x, str) for x in own)):
            raise ValueError(f"groups({name!r}) must return a label or a tuple of labels, not {own!r}")
        labels[name] = tuple(dict.fromkeys((ALL, *([own] if isinstance(own, str) else own))))
    return labels


def check_kinds(parameters: Any, groups: Any) -> None:
    """Raises ValueError where either is of a kind that cannot select."""
    if not (parameters is None or callable(parameters) or isinstance(parameters, str | list | tuple | set)):
        raise ValueError(f"parameters must be a function, a glob or a list of globs, not {type(parameters).__name__}")
    if not (groups is None or callable(groups) or isinstance(groups, Mapping)):
        raise ValueError(f"groups must be a function or a mapping label -> glob or globs, not {type(groups).__name__}")
