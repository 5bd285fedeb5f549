"""Options of commands and plug-ins, declared as fields of frozen dataclasses: default, line of --help, valid values and range in one place.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        bins: int = option(10, "bins of t", low=1)
        spacing: str = option("t", "bins equal in t or in logSNR", ("t", "logsnr"))

`build` makes one from a mapping (of a file, or of words of the command line), and says in one line what is wrong with it. Imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gsnr import plugins
from gsnr.commandline import check_list, meant, unknown, unknown_flag
from gsnr.declared import declared

LARGEST = 2**63  # what numpy and torch take for a whole number
RULES = (
    ("low", "at least", lambda x, y: x >= y),
    ("above", "above", lambda x, y: x > y),
    ("high", "at most", lambda x, y: x <= y),
    ("below", "below", lambda x, y: x < y),
)


def option(
    default: Any,
    text: str,
    choices: tuple[str, ...] | str = (),
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    also: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """A field with its line of --help. choices: its valid values, or the kind of plug-in whose names they are. low, high: the least and the
    largest value; above, below: the same, not reached. also: other words for some of the choices, which are never stored."""
    ends = {"low": low, "high": high, "above": above, "below": below}
    return field(default=default, metadata={"help": text, "choices": choices, "also": also} | {k: v for k, v in ends.items() if v is not None})


def choices(of: Field) -> tuple[str, ...]:
    """The valid values of an option; () where they are not a list of names."""
    listed = of.metadata.get("choices", ())
    return tuple(plugins.names(listed)) if isinstance(listed, str) else listed


def cast(annotation: Any, value: Any, where: str) -> Any:
    """A value from JSON or the command line as the annotated type. Raises ValueError naming the key."""
    if annotation is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if annotation is tuple or typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)[0]
        items = (_json_list(value, where) if inner is dict else value.split(",")) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ValueError(f"{where}: {value!r} is not a list")
        return tuple(cast(inner, item, where) for item in items)
    if dict in (annotation, typing.get_origin(annotation)):
        if not isinstance(value, dict) and annotation is dict:  # an item of a list
            raise ValueError(f"{where}: {value!r} is not of type dict")
        if not isinstance(value, dict):
            raise ValueError(f'{where} is a section, not a value; name one with {{"name": ...}}')
        return dict(value)
    if isinstance(annotation, types.UnionType):
        inner = next(a for a in typing.get_args(annotation) if a is not type(None))
        return None if value in (None, "none") else cast(inner, value, where)
    if annotation in (int, float, str) and not isinstance(value, bool | dict | list):
        try:
            number = float(value) if annotation is int and isinstance(value, str) and "e" in value.lower() else value
            if annotation is int and isinstance(number, float) and not number.is_integer():
                raise ValueError
            return annotation(number)
        except (TypeError, ValueError):
            pass
    raise ValueError(f"{where}: {value!r} is not of type {getattr(annotation, '__name__', annotation)}")


def _json_list(value: str, where: str) -> Any:
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: {value!r} is not a JSON list ({error})") from error


def _check_names(value: Any, of: Field, path: str) -> None:
    """Raises ValueError for a name that is not valid, and for a list of names that names one twice, or nothing."""
    names, valid = value if isinstance(value, tuple) else (value,), choices(of)
    if isinstance(value, tuple) and all(isinstance(name, str) for name in value):
        check_list(path, value, valid)
    for name in names:
        if valid and name not in valid:
            raise plugins.missing(path, name, valid) if isinstance(of.metadata["choices"], str) else ValueError(unknown(path, name, valid))


def declared_options(path: Path, name: str) -> type:
    """The class of options that a plug-in's file declares, without what the file imports. Raises ValueError naming a file where there is none."""
    try:
        found = declared(path, name)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: its {name} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(found, type) or not is_dataclass(found):
        raise ValueError(f"{path}: its {name} is no dataclass of options; `gsnr check-plugin {path}` says what a plug-in has to hold")
    return found


def build(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """A dataclass of options from nested mappings. where: what its keys are called in errors, "--" for flags.

    Raises ValueError naming an unknown key and the valid ones, or a value of the wrong type."""
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    made = {}
    if not isinstance(values, dict):
        raise ValueError(f"{where.rstrip('.') or 'the configuration'} is a section, not a value; its options are {', '.join(sorted(known))}")
    for key, value in values.items():
        path = f"{where}{key.replace('_', '-')}" if where.startswith("--") else f"{where}{key}"
        if key not in known:
            near = meant(path, kinds(cls, where))
            has = f"{where.rstrip('.') or 'the configuration'} has {', '.join(sorted(known))}"
            raise ValueError(f"unknown option {path!r}; {f'did you mean {near[0]}? ' if near else ''}{has}")
        if is_dataclass(hints[key]):
            made[key] = build(typing.cast(type, hints[key]), value, f"{path}.")
        else:
            also = known[key].metadata.get("also", {})
            made[key] = cast(hints[key], also.get(value, value) if isinstance(value, str) else value, path)
            _check_names(made[key], known[key], path)
    return cls(**made)


def check_whose(kind: str, section: str, values: Mapping[str, Any], usual: str) -> None:
    """Raises ValueError, naming the flag, for an option that plug-ins of this kind have, but not the one that is named."""
    name = values.get("name", usual)
    own = {f.name for f in fields(declared_options(plugins.get(kind, name).path, "Config"))}
    for key in values.keys() - own - {"name"}:
        others = {other: declared_options(plugin.path, "Config") for other, plugin in plugins.every(kind).items()}
        if whose := [other for other, cls in others.items() if key in {f.name for f in fields(cls)}]:
            flag = f"--{section.replace('_', '-')}"
            raise ValueError(f"{flag}.{key.replace('_', '-')}: is an option of {', '.join(whose)}, not of {name!r}; name one of them with {flag}")


def plugged(kind: str, section: str, values: Mapping[str, Any], usual: str) -> Any:
    """The options of the plug-in that a section of a configuration names, as the Config of its file. usual: the plug-in where none is named.

    Raises ValueError for an unknown name or option, and for a value out of its range."""
    module = plugins.find(kind, values.get("name", usual))
    check_whose(kind, section, values, usual)
    made = build(module.Config, {key: value for key, value in values.items() if key != "name"}, f"{section}.")
    check_ranges(made, f"{section}.")
    return made


def out_of_range(f: Field, value: Any) -> str | None:
    """What is wrong with a number, "must be at least 1" say; None where nothing is. A whole number must be below 2^63, any number finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    holds = all(rule(value, f.metadata[key]) for key, _, rule in RULES if key in f.metadata)
    sane = math.isfinite(value) and value < LARGEST
    if holds and sane:
        return None
    return f"must be {limits(f)}" if not holds and math.isfinite(value) else "must be a finite number below 2^63"


def limits(of: Field) -> str:
    """The range of an option in words, "at least 1 and below 3" say; "" where it has none."""
    return " and ".join(f"{words} {of.metadata[key]}" for key, words, _ in RULES if key in of.metadata)


def help_lines(of: Any, prefix: str = "", owner: str = "", leave_out: tuple[str, ...] = ()) -> list[str]:
    """One line an option, those of sections too: flag, help, valid values, range, default. of: a dataclass, or an instance, whose values are then
    the defaults. owner: whose options they are, said at the end of each line."""
    return [help_line(name, f, written(default), owner) for f, name, default in _every(of, prefix, leave_out)]


def help_line(name: str, of: Field, default: str, owner: str = "") -> str:
    """One option's line of --help."""
    rules = "; ".join(filter(None, (", ".join(choices(of)), limits(of))))
    text = of.metadata.get("help", "") + (f": {rules}" if rules else "")
    return f"  --{name.replace('_', '-'):28} {text}{f' [{default}]' if default else ''}{f' ({owner})' if owner else ''}"


def help_of_several(classes: dict[str, type], prefix: str = "") -> list[str]:
    """Lines of --help on the options of several classes, each option once: its usual default, then those of others; and whose it is, where not
    all have it. classes: owner -> dataclass."""
    found: dict[str, dict[str, Field]] = {}
    for owner, cls in classes.items():
        for f in fields(cls):
            found.setdefault(f.name, {})[owner] = f
    lines = []
    for name, by_owner in found.items():
        defaults = {owner: written(f.default) for owner, f in by_owner.items()}
        (most, _), *_ = Counter(defaults.values()).most_common(1)
        shown = "; ".join([most, *(f"{owner}: {default}" for owner, default in defaults.items() if default != most)])
        owners = "" if len(by_owner) == len(classes) else ", ".join(by_owner)
        lines.append(help_line(f"{prefix}{name}", next(iter(by_owner.values())), shown, owners))
    return lines


def values_of(words: list[str], known: dict[str, str], flags: list[str]) -> dict[str, str]:
    """["--optim.lr", "1e-4", "--batch=8", "--compile"] -> {"optim.lr": "1e-4", "batch": "8", "compile": "true"}.

    known: every option and its type as written (see `kinds`). flags: of the command beside them. Raises ValueError for what is no flag, for one
    that is like a known one, and for one that lacks its value; other names are passed on."""
    flat: dict[str, str] = {}
    left = list(reversed(words))
    while left:
        word = left.pop()
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}")
        name, equals, value = word[2:].partition("=")
        key = name.replace("-", "_")
        if key not in known and name not in flags and (near := unknown_flag(name, [*(option.replace("_", "-") for option in known), *flags])):
            raise ValueError(f"unknown option {key!r}{near}")
        if not equals and known.get(key) == "bool" and (not left or left[-1].startswith("--")):
            value = "true"
        elif not equals:
            if not left:
                raise ValueError(f"{word} needs a value" if key in known else f"unknown option {key!r} (see --help)")
            value = left.pop()
        flat[key] = value
    return flat


def kinds(of: Any, prefix: str = "") -> dict[str, str]:
    """{"optim.lr": "float", ...}: every option, those of sections too, and its type as written."""
    return {name: f.type if isinstance(f.type, str) else f.type.__name__ for f, name, _ in _every(of, prefix)}


def _every(of: Any, prefix: str, leave_out: tuple[str, ...] = ()) -> Iterator[tuple[Field, str, Any]]:
    """(field, dotted name, default) of every option."""
    for f in fields(of):
        default = f.default if isinstance(of, type) else getattr(of, f.name)
        if is_dataclass(default):
            yield from _every(default, f"{prefix}{f.name}.")
        elif f.name not in leave_out:
            yield f, f"{prefix}{f.name}", default


def written(default: Any) -> str:
    """A default as it would be typed; "" for none."""
    if default in ("", None, ()) or default is MISSING:
        return ""
    if isinstance(default, tuple | list):
        return json.dumps(default) if any(isinstance(item, dict) for item in default) else ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def check_ranges(options: Any, where: str = "--") -> None:
    """Raises ValueError, naming the flag, for a value out of its option's range; sections are gone through."""
    for f in fields(options):
        value, flag = getattr(options, f.name), f"{where}{f.name.replace('_', '-')}"
        if is_dataclass(value):
            check_ranges(value, f"{flag}.")
        elif (wrong := out_of_range(f, value)) is not None:
            raise ValueError(f"{flag} {value}: {wrong}")
