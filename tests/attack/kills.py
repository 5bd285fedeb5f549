"""`kill -9`, at random moments, of every command: what was there before is whole, and called again it makes what an undisturbed one makes.

Two thirds of the kills are of forked processes (`_kills_of_forks`: every command, each call of it killed once), a third of whole ones
(`_kills_of_processes`: those that take long, killed many times and gone on with).
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.attack._commands import COMMANDS
from tests.attack._kills_of_forks import forks
from tests.attack._kills_of_processes import processes

TIMES = 100


def attack(n: int, seed: int, folder: Path) -> list[str]:
    rng = random.Random(seed)
    return forks(list(COMMANDS), n - n // 3, rng, folder) + processes(n // 3, rng, folder)
