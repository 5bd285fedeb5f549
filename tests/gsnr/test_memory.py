"""What memory a process may have: the machine's, or its control groups' limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gsnr import memory

V2, V1 = "0::/job/step\n", "12:cpu,cpuacct:/a\n9:name=systemd:/\n4:memory:/job/step\n0::/\n"


def _write(root: Path, limits: dict[str, str]) -> None:
    for place, limit in limits.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(f"{limit}\n")


@pytest.mark.parametrize(
    ("groups", "limits", "found"),
    [
        (V2, {"memory.max": "max", "job/memory.max": "3000", "job/step/memory.max": "max"}, [3000]),
        (V2, {"job/memory.max": "3000", "job/step/memory.max": "2000"}, [2000, 3000]),
        ("0::/elsewhere\n", {"memory.max": "5000"}, [5000]),  # a container sees its own group as the root
        (V1, {"memory/job/memory.limit_in_bytes": "7000", "memory/memory.limit_in_bytes": str(2**63 - 4096)}, [7000, 2**63 - 4096]),
        (V1, {"cpu,cpuacct/a/memory.max": "1"}, []),
    ],
)
def test_limits_of_control_groups(groups: str, limits: dict[str, str], found: list[int], tmp_path: Path) -> None:
    _write(tmp_path, limits)
    assert list(memory._limits(groups, tmp_path)) == found


def test_the_least_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "groups").write_text(V2)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "MOUNTED", tmp_path)
    assert memory.memory_of_process() == machine
    for limit, expected in (("4096", 4096), (str(2 * machine), machine)):
        _write(tmp_path, {"memory.max": limit})
        assert memory.memory_of_process() == expected
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "nowhere")
    assert memory.memory_of_process() == machine
