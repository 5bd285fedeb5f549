"""How every command of this project talks: one clear line and exit code 2 for bad input, no traceback. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose help keeps the line breaks and shows defaults."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def seed(text: str) -> int:
    """The type of a --seed: what numpy and torch both take."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^63 - 1")
    return int(text)


def run(command: Callable[[], int], name: str, extra: str) -> NoReturn:
    """Runs a command and exits with its code; 2 and one line for bad input, 130 for Ctrl-C. GSNR_TRACEBACK=1 shows tracebacks.

    extra: what `pip install 'gsnr[EXTRA]'` brings the packages that the command needs; "" for none."""
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # whoever read the output has seen enough (`gsnr ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except ModuleNotFoundError as error:
        if os.environ.get("GSNR_TRACEBACK") or error.name is None or error.name.split(".")[0] == "gsnr":
            raise
        print(f"error: {missing(error.name, name, extra)}", file=sys.stderr)
        code = 2
    except (ValueError, OSError) as error:
        if os.environ.get("GSNR_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    raise SystemExit(code)


def missing(package: str, what: str, extra: str) -> str:
    """What to say where a package is not installed that `what` needs."""
    of = f"gsnr[{extra}]" if extra else package
    return f"{what} needs the package {package!r}, which is not installed: pip install {of!r}"
