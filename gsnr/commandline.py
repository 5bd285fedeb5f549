"""How every command of this project talks. One grammar:

    --ckpt PATH        what is measured, sampled, evaluated: a run folder (its last checkpoint), a checkpoint folder, or a foreign file
    --run DIR          what tables are read from: a run folder, or a folder of tables
                       where several may be named: --run A B, or --run A --run B; so too --ckpt
    --data DATA        what is read: a cache folder, or `demo`. `gsnr train --data X` is short for --data.path X.
                       (`gsnr prepare` makes caches: there it is the pictures.)
    --out PATH         what is written: a folder, or the file that the help names
    --rows A,B         a list is one word with commas
    --flip             a yes is a flag; options of a run's configuration also take --compile true, --compile false
    --precision P      no, bf16 or fp16
    --seed S           a whole number from 0 to 2^63 - 1
    --plugins PATH     a file or folder of plug-ins of your own, for any command
    --optim.lr 1e-4    a section of a configuration and its option; preset < file (--config) < command line

Bad input is one line on stderr, with what may have been meant, and exit code 2; Ctrl-C is 130. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gsnr import files

OTHERS_SEC = 5.0  # torchrun looks after its processes every 0.1 s and ends them within moments


def _nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known word that is most like it and about as long; [] for none."""
    return difflib.get_close_matches(word, [name for name in known if abs(len(name) - len(word)) <= 2], 1)


def meant(word: str, known: Iterable[str]) -> list[str]:
    """What a word may stand for: of dotted names ("optim.lr") the last part will do. [] where nothing is near."""
    names = list(known)
    section, dot, last = word.rpartition(".")
    if exact := [name for name in names if name.rpartition(".")[2] == last]:
        return exact[:3]
    if not dot and (near := _nearest(word, names)):
        return near
    beside = [name for name in names if dot and name.startswith(f"{section}.")] or names
    by_last = {name.rpartition(".")[2]: name for name in reversed(beside)}
    return [by_last[match] for match in _nearest(last, by_last)]


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """One line on a name that does not exist: "--rows 'spa' does not exist; choose from sit, sra (did you mean sra?)"."""
    names = list(known)
    near = meant(word, names)
    return f"{what} {word!r} does not exist; choose from {', '.join(names)}{f' (did you mean {near[0]}?)' if near else ''}"


def choose(what: str, word: str, known: Iterable[str]) -> None:
    """Raises ValueError for a word that is not one of these."""
    names = list(known)
    if word not in names:
        raise ValueError(unknown(what, word, names))


def check_list(what: str, names: tuple[str, ...], known: Iterable[str] = ()) -> None:
    """Raises ValueError for a list of names that names one twice, or nothing. known: the valid ones, to be said."""
    for name in names:
        if not name or names.count(name) > 1:
            needed = f"choose from {', '.join(known)}" if known else "a list such as A,B is needed"
            raise ValueError(f"{what} {','.join(names)!r}: names {'nothing' if not name else f'{name!r} twice'}; {needed}")


def listed(flag: str, text: str, known: Iterable[str] = ()) -> tuple[str, ...]:
    """The names in the value of a flag that takes A,B. Raises ValueError for one that is named twice, and for nothing. known: the valid ones."""
    names = tuple(text.split(","))
    check_list(flag, names, known)
    return names


def chosen(flag: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    """The same, where the valid names are fixed. Raises ValueError for another, too."""
    valid = list(known)
    names = listed(flag, text, valid)
    for name in names:
        choose(flag, name, valid)
    return names


def unknown_flag(word: str, known: Iterable[str]) -> str:
    """ "; did you mean --optim.lr?", or "" where no flag is near. known: flags without their dashes."""
    near = meant(word.lstrip("-").partition("=")[0].replace("_", "-"), known)
    return f"; did you mean {' or '.join(f'--{name}' for name in near)}?" if near else ""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose help keeps the line breaks.

    teach: from the words beside --help, what the help says below the flags; called for --help alone."""

    def __init__(self, prog: str, description: str, teach: Callable[[list[str]], list[str]] | None = None) -> None:
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self.teach, self.bounds = teach, dict[str, tuple[str, float, float]]()
        self.add_argument("--plugins", metavar="PATH", help="file or folder of plug-ins of your own; may be repeated")

    def add_runs(self) -> None:
        """--run, which several commands have."""
        self.add_argument("--run", type=a_folder, required=True, nargs="+", action="extend", metavar="DIR", help="run folders, or folders of tables")

    def add_number(self, flag: str, default: float | None, text: str, *, low: float, high: float, of: type = int, metavar: str = "N") -> None:
        """A number between two ends. What is out of them is refused before it takes memory, processes or time."""
        shown = "" if default is None else f" (default: {default})"
        action = self.add_argument(flag, type=of, default=default, metavar=metavar, help=f"{text}{shown}")
        self.bounds[action.dest] = flag, low, high

    def _check_bounds(self, found: argparse.Namespace) -> None:
        """Raises ValueError naming the flag and the bounds."""
        for dest, (flag, low, high) in self.bounds.items():
            value = getattr(found, dest)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{flag} {value}: must be at least {low} and at most {high}")

    @property
    def flags(self) -> list[str]:
        """Its flags, without their dashes."""
        return [name.removeprefix("--") for name in self._option_string_actions if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        _say(f"error: {message} (see {self.prog} --help)")
        raise SystemExit(2)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{unknown_flag(rest[0], self.flags)}")
        return found

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = sys.argv[1:] if args is None else list(args)
        if self.teach is not None and asks_for_help(words):
            self.epilog = "\n".join(self.teach([word for word in words if not asks_for_help([word])]))
        found, rest = super().parse_known_args(words, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if action.option_strings and (value == [] if action.nargs == "+" else action.nargs is None and isinstance(value, list)):
                self.error(f"argument {action.option_strings[0]}: expected one argument")  # --flag=--, of which argparse drops the value
        self._check_bounds(found)
        return found, rest


def asks_for_help(words: Iterable[str]) -> bool:
    """Whether -h or --help is among the words."""
    return not {"-h", "--help"}.isdisjoint(words)


def no_path(text: str) -> str | None:
    """Why a word is no path, where it is none: an empty one would be the current folder, and ~ and s3: folders of these names."""
    if not text:
        return "names nothing; a path on this machine is needed"
    if text.split("/")[0].startswith("~"):
        return f"{text!r} begins with ~, which the shell alone expands, at the start of a word; write the path out, or use $HOME"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return f"{text!r} is an address; only paths on this machine are read and written"
    return None


def a_path(text: str) -> Path:
    """The type of a path."""
    wrong = no_path(text)
    if wrong is not None:
        raise argparse.ArgumentTypeError(wrong)
    try:
        os.stat(text)
    except OSError as error:  # others are said where the path is used
        if error.errno == errno.ELOOP:
            raise argparse.ArgumentTypeError(f"{text!r} is a link that leads to itself") from error
    return Path(text)


def a_folder(text: str) -> Path:
    """The type of a folder that is to be there."""
    path = a_path(text)
    if not path.is_dir():
        name = text if text.isprintable() else repr(text)
        raise argparse.ArgumentTypeError(f"{name}: {'no folder' if path.exists() else 'no such folder'}")
    return path


def a_cache(text: str) -> str:
    """The type of --data: a cache folder, or the name of one that is made on first use."""
    a_path(text)
    return text


def seed(text: str) -> int:
    """The type of a --seed: what numpy and torch both take."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^63 - 1")
    return int(text)


STDOUT = Path("standard output")


def tell(text: str) -> None:
    """Prints what is to be read before the command ends, through a pipe too. Raises OSError, which names standard output."""
    with files.naming(STDOUT):
        print(text, flush=True)


def run(command: Callable[[], int], name: str, extra: str) -> NoReturn:
    """Runs a command and exits with its code; 2 and one line for bad input, 130 for Ctrl-C. GSNR_TRACEBACK=1 shows tracebacks.

    extra: what `pip install 'gsnr[EXTRA]'` brings the packages that the command needs; "" for none."""
    try:
        code = _code(command)
        with files.naming(STDOUT):
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        _say(f"\ninterrupted{f'; {stop}' if stop.args else ''}")  # the terminal shows ^C where the cursor is
        code = 130
    except BrokenPipeError:  # whoever read the output has seen enough (`gsnr ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except ModuleNotFoundError as error:
        if os.environ.get("GSNR_TRACEBACK") or error.name is None or error.name.split(".")[0] == "gsnr":
            raise
        _say(f"error: {missing(error.name.split('.')[0], name, extra)}")
        code = 2
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("GSNR_TRACEBACK"):
            raise
        _say(f"error: {_text(error)}")
        code = 2
    except Exception:
        _wait_for_the_first()
        raise
    raise SystemExit(code)


def _text(error: Exception) -> str:
    """One line; of an error of the disk, the path first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {' '.join(error.strerror.split())}"
    return " ".join(str(error).split()) or type(error).__name__


def _say(line: str) -> None:
    """A line on stderr, below what progress bars leave."""
    _wait_for_the_first()
    for bar in list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())):
        bar.close()
    print(line, file=sys.stderr)


def _wait_for_the_first() -> None:
    """Of the processes that torchrun starts one says an error: when any ends, torchrun ends the others. Those that are not the first wait
    before they speak, and so speak only where the error is theirs alone."""
    if os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(OTHERS_SEC)


def _code(command: Callable[[], int]) -> Any:
    """argparse exits by itself, after --help and bad flags; what it printed is still to be written out."""
    try:
        return command()
    except SystemExit as end:
        return end.code


def missing(package: str, what: str, extra: str) -> str:
    """What to say where a package is not installed that `what` needs."""
    of = f"gsnr[{extra}]" if extra else package
    return f"{what} needs the package {package!r}, which is not installed: pip install {of!r}"
