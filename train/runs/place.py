"""May a run folder be written to, as far as a look at the disk tells. Imports nothing heavy: this is asked first."""

from __future__ import annotations

from pathlib import Path

from gsnr import files

STORED = "config.json"  # what makes a folder a run
NO_RUN = ("lost+found", "lock")  # what a folder may hold that is new; a kill before config.json leaves the lock


def holds_run(out: Path, resume: bool) -> bool:
    """Whether a run is there already. Raises ValueError for something else, a run without --resume, and a place that cannot be written to."""
    there = (out / STORED).is_file()
    if not there and out.exists() and (not out.is_dir() or any(p.name not in NO_RUN and not files.left_behind(p) for p in out.iterdir())):
        raise ValueError(f"--out {out}: exists and is not a run; name a new folder")
    if there and not resume:
        raise ValueError(f"--out {out}: already holds a run; continue it with --resume, or name a new folder")
    files.check_writable(out, "--out")
    return there
