"""The account of multiply-accumulates against the published numbers and against sums by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gsnr.train import presets
from gsnr.train.config import resolve
from gsnr.train.cost import main
from gsnr.train.costing import steps
from gsnr.train.costing.counts import macs


def counted(row: str, size: str) -> tuple[int, int]:
    m = macs(resolve(presets.at(row, size)))
    return m.backbone, m.alignment


def test_sit_xl2_has_the_published_macs() -> None:
    """Matrix products of SiT-XL/2 at 256 are 118.62 G with attention products; the published 118.66 (AHPA, Table 6) adds small operations."""
    backbone, alignment = counted("sit", "xl2")
    assert round(backbone / 1e9, 2) == 118.62 and alignment == 0


@pytest.mark.parametrize(("size", "share"), [("b2", 7.9), ("l2", 3.0), ("xl2", 2.3)])
def test_ahpas_share(size: str, share: float) -> None:
    """The 3x3 projector is 7.9 % of B/2's MACs, 3.0 % of L/2's, 2.3 % of XL/2's; router and mixture add less than 0.01 % and 0.02 %."""
    backbone, alignment = counted("ahpa", size)
    width = presets.SIZES[size][1]
    projector = 9 * width * 1024 * 256
    assert round(100 * projector / backbone, 1) == share
    mixture = 8 * 512 * 256  # each of eight layers' 512 channels at 256 tokens, once
    router = 128 + 128 * 256 + 2 * 256 * 256 + 256 * 10
    assert alignment == projector + mixture + router


def test_the_other_methods_by_hand() -> None:
    """At B/2: REPA's head; SRA's head and its teacher's eight blocks; SRA 2's five layers. d = 768, T = 256."""
    d, tokens = 768, 256
    assert counted("repa", "b2")[1] == tokens * (d * 2048 + 2048 * 2048 + 2048 * 768)
    assert counted("sra2", "b2")[1] == tokens * (4 * d * d + d * 16)
    block = tokens * 12 * d * d + 2 * tokens**2 * d + 6 * d * d  # attention and MLP, attention products, adaLN
    embedders = tokens * 16 * d + 256 * d + d * d
    assert counted("sra", "b2")[1] == tokens * (2 * d * d + 2 * d * d) + 8 * block + embedders


def test_the_command_measures_a_step(capsys: pytest.CaptureFixture) -> None:
    assert main(["--size", "demo", "--rows", "sit,ahpa,sra,repa", "--batch", "2", "--rounds", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = printed["rows"]
    assert found["sit"]["time"] == 1.0 and found["sit"]["alignment_parameters"] == 0
    assert all(found[row]["seconds"] > 0 for row in ("ahpa", "sra", "repa"))
    assert 0 < found["ahpa"]["peak"] < 2 and printed["matmul_peak"] > 1e8


def test_peak_is_the_share_of_the_flops_that_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """On a clock that says a quarter of a second for everything: FLOPs of a step, which PyTorch counts as forward and backward run, over those
    of the matrix product. Within 1 %, since the first layers need no gradient of their input."""
    counted = []

    def clock(work: Callable[[], None]) -> float:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused attention on a CPU is not counted
            work()
        counted.append(counter.get_total_flops())
        return 0.25

    monkeypatch.setattr(steps.clock, "seconds", clock)
    assert main(["--size", "demo", "--rows", "ahpa", "--batch", "2", "--rounds", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    product, step = counted[0], counted[-1]
    assert printed["matmul_peak"] == product / 0.25
    assert printed["rows"]["ahpa"]["seconds"] == 0.25
    assert printed["rows"]["ahpa"]["peak"] == pytest.approx(step / product, rel=1e-2)


def test_bad_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--size 'h2' does not exist; choose from s2"):
        main(["--size", "h2"])
    with pytest.raises(ValueError, match="--rows 'nope' does not exist; choose from sit"):
        main(["--rows", "nope"])
    with pytest.raises(ValueError, match="--batch 100000000000: must be at least 1 and at most 65536"):
        main(["--batch", "100000000000"])

    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(steps, "stepper", full)
    with pytest.raises(ValueError, match="--batch 7: too much for the memory of this machine"):
        main(["--size", "demo", "--rows", "sit", "--rounds", "1", "--batch", "7"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--precision fp16: needs a GPU; choose no or bf16"):
            main(["--precision", "fp16"])
