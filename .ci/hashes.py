"""Writes .ci/hashes.txt: what `make` installs here by constraints.txt, each package with its version and the SHA-256 of its file.

    make hashes          after a change of constraints.txt, on a machine like CI's (Linux x86-64, CPython 3.11)

torch is left out: which of its wheels is installed (CPU, CUDA) depends on the machine, and its version alone is pinned.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parent.parent
REPORT = ("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", "--constraint", "constraints.txt", ".[all,dev,notebooks,docs]")
HEAD = "# Written by .ci/hashes.py: the files that CI installs (Linux x86-64, CPython 3.11), torch left out; constraints.txt has the versions.\n"


def main() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *REPORT], cwd=REPO, capture_output=True, text=True, check=True)
    lines = []
    for item in json.loads(done.stdout)["install"]:
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        if name not in ("gsnr", "torch"):
            lines.append(f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}\n")
    (REPO / ".ci" / "hashes.txt").write_text(HEAD + "".join(sorted(lines)))


if __name__ == "__main__":
    main()
