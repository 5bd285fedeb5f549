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


def run(command: Callable[[list[str]], int]) -> NoReturn:
    """Runs command(argv) and exits with its code; 2 and one line for bad input, 130 for Ctrl-C. GSNR_TRACEBACK=1 shows tracebacks."""
    try:
        code = command(sys.argv[1:])
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except (ValueError, OSError) as error:
        if os.environ.get("GSNR_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    raise SystemExit(code)
