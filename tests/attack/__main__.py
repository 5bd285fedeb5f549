"""What could lose or falsify a result, done to the commands on purpose.

    python -m tests.attack                        every attack, at its own size
    python -m tests.attack flips --n 500          one, that many times
    python -m tests.attack kills --n 30 --seed 1

An attack is a file of this folder with TIMES and attack(n, seed, folder) -> lines that say what got through; none is what is wanted. Exit code 1
if there is any.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib import import_module
from pathlib import Path


def main() -> int:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", nargs="*", metavar="ATTACK", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--n", type=int, help="how many times (default: the attack's own number)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.attack) - set(names):
        parser.error(f"{min(unknown)}: choose from {', '.join(names)}")
    through = 0
    for name in options.attack or names:
        module = import_module(f"tests.attack.{name}")
        n, start = options.n or module.TIMES, time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"gsnr-attack-{name}-") as folder:
            lines = module.attack(n, options.seed, Path(folder))
        print("\n".join([*lines, f"{name}: {n} times in {time.monotonic() - start:.0f} s, {len(lines)} got through"]), flush=True)
        through += len(lines)
    return 1 if through else 0


if __name__ == "__main__":
    raise SystemExit(main())
