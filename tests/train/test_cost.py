"""The account of multiply-accumulates against the published numbers and against sums by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gsnr.train import presets
from gsnr.train.config import resolve
from gsnr.train.cost import main
from gsnr.train.costing import activations as memory
from gsnr.train.costing import paper, sampling, steps
from gsnr.train.costing.activations import activations, saved_bytes
from gsnr.train.costing.counts import bytes_of_an_image, macs, objective_of, synthetic_batch
from gsnr.train.models.routing import Routing
from gsnr.train.models.sit import SiT


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


def test_routing_across_depth_by_hand() -> None:
    """XL/2 reads sources 522 times (chunks of 4) or 1653 (dense), each by two products; the demo 49 times, and 13 queries are matrix products."""
    for chunk, read in ((4, 522), (0, 1653)):
        with torch.device("meta"):
            routing = Routing(depth=28, hidden_size=1152, queries="static", chunk=chunk, summary="last", final="own", query_std=0.0)
        assert routing.macs(256) == 2 * read * 256 * 1152
    plain, static, dynamic = (counted(row, "demo")[0] for row in ("sit", "dar-static", "dar-dynamic"))
    assert static - plain == 2 * 49 * 64 * 96 and dynamic - static == 13 * 64 * 96**2


def test_the_command_measures_a_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(steps.SIDE, "cpu", 1024)  # an eighth of the work
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

    monkeypatch.setitem(steps.SIDE, "cpu", 64)
    monkeypatch.setattr(steps.clock, "seconds", clock)
    monkeypatch.setattr(sampling, "sampling", lambda *_: None)
    monkeypatch.setattr(sampling, "forward_seconds", lambda *_: 0.25)
    assert main(["--size", "demo", "--rows", "ahpa", "--batch", "2", "--rounds", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    product, step = counted[0], counted[-1]
    assert printed["matmul_peak"] == product / 0.25
    assert printed["rows"]["ahpa"]["seconds"] == 0.25
    assert printed["rows"]["ahpa"]["peak"] == pytest.approx(step / product, rel=1e-2)


def test_saved_bytes_by_hand() -> None:
    """y = w2 gelu(w1 x): autograd keeps x, the sum before gelu and gelu's value, once each; the weights, which are there anyway, do not count."""
    first, second = nn.Linear(8, 32, bias=False), nn.Linear(32, 4, bias=False)
    x = torch.randn(5, 8)
    assert saved_bytes(lambda: second(F.gelu(first(x))), [*first.parameters(), *second.parameters()]) == 4 * 5 * (8 + 32 + 32)
    with torch.no_grad():
        assert saved_bytes(lambda: second(first(x))) == 0


@pytest.mark.parametrize("row", ["sit", "ahpa", "sra"])
def test_activations_are_those_of_a_real_step(row: str) -> None:
    """Counted on fake tensors, of one more sample; here on real ones, of a batch of four. In float32 nothing is kept but what grows with it."""
    config = resolve(presets.at(row, "demo"))
    objective, batch = objective_of(config, "cpu"), synthetic_batch(config, 4, "cpu")
    with torch.no_grad():
        ready = objective.alignment.prepare(batch, objective.model)
    kept = saved_bytes(lambda: objective(ready), [*objective.parameters(), *objective.buffers()])
    assert 4 * activations(config) == pytest.approx(kept, rel=1e-3)
    if row == "sit":
        half = activations(resolve(presets.at(row, "demo"), {"precision": "bf16"}))
        assert 0.5 * activations(config) < half < activations(config)
        assert activations(resolve(presets.at(row, "demo"), {"checkpointing": True})) < 0.3 * activations(config)


def test_bytes_of_an_image() -> None:
    """SD-VAE at 256 pixels: moments of 4x32x32 in float32, eight layers of 512 x 16 x 16 in float16 (DESIGN: 2 MiB), DINOv2-B's tokens."""
    latent = 2 * 4 * 4 * 32 * 32
    assert bytes_of_an_image(resolve(presets.at("sit", "xl2"))) == latent
    assert bytes_of_an_image(resolve(presets.at("ahpa", "xl2"))) == latent + 2 * 2**20
    assert bytes_of_an_image(resolve(presets.at("repa", "xl2"))) == latent + 2 * 768 * 256
    assert bytes_of_an_image(resolve(presets.at("ahpa", "xl2-512"))) == 4 * latent + 8 * 2**20


def test_what_disagrees_with_the_paper() -> None:
    """By the counts of SiT-XL/2 that the tests above hold."""
    rows = {"sit": 0.0, "ahpa": 2.719e9, "repa": 2.08e9, "sra": 86.082e9, "sra2": 1.3637e9}
    found = {row: {"backbone_macs": 118.617e9, "alignment_macs": added, "alignment_parameters": 10.79e6} for row, added in rows.items()}
    notes = "\n".join(paper.disagreements(resolve(presets.at("sit", "xl2")).model, found))
    for said in (
        "sit: 114.46 leaves out the products of attention, 4.23 G; ours is 118.62 with and 114.39 without",
        "ahpa: 119.85 is 114.46 + 5.39 G; its 3x3 convolution is 2.72 GMACs (ours adds 2.72 in all): 2 x 2.72 are FLOPs, added to MACs",
        "ahpa: 2.5 M parameters; the convolution has 10.62 M (ours 10.79 in all)",
        "repa: 138.5 is 114.46 + 24.04 G: DINOv2-B runs in its step",
        "sra2: 118.55 is 114.46 + 4.09 G, which is 3.00 times ours",
        "latencies differ by row, but nothing of an alignment runs in a sampler",
    ):
        assert said in notes, said
    assert paper.disagreements(resolve(presets.at("sit", "xl2")).model, {"static": found["ahpa"]}) == []


def test_the_papers_row_stands_below_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(memory, "activations", lambda _: 2**20)  # at this size seconds, and tested above
    assert main(["--size", "xl2", "--rows", "ahpa", "--macs-only"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "the paper 119.850 G in all 2.50 M the paper's table (AHPA, Table I.21) disagrees" in printed


def test_what_a_sample_costs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """On a clock that counts evaluations of the model and says a second for each: as many as the whole sampler makes."""
    ran = []
    model = SiT.forward_with_taps
    monkeypatch.setattr(SiT, "forward_with_taps", lambda *args, **options: (ran.append(1), model(*args, **options))[1])

    def clock(work: Callable[[], object]) -> float:
        before = len(ran)
        work()
        return float(len(ran) - before)

    monkeypatch.setattr(steps.clock, "seconds", clock)
    monkeypatch.setattr(
        steps, "measure", lambda found, *_: [row.update(time=1.0, low=1.0, high=1.0, seconds=1.0, peak=0.5) for row in found.values()]
    )
    monkeypatch.setattr(steps, "matmul_peak", lambda _: 1e12)
    words = ["--size", "demo", "--rows", "ahpa", "--batch", "2", "--rounds", "1", "--sampler", "heun", "--sampling-steps", "30"]
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    drawn = printed["sampling"]
    assert drawn["evaluations"] == 59 and drawn["sample"] == drawn["batch"] == 59.0 and drawn["encode"] == 0.0
    assert printed["rows"]["ahpa"]["latency"] == 1.0
    assert main(words) == 0
    assert (
        "sampling (heun, 30 steps, 59 evaluations; timed over 4 steps): 59.000 s a sample, 0.034 samples/s in batches of 2" in capsys.readouterr().out
    )


def test_bad_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--size 'h2' does not exist; choose from s2"):
        main(["--size", "h2"])
    with pytest.raises(ValueError, match="--rows 'nope' does not exist; choose from sit"):
        main(["--rows", "nope"])
    with pytest.raises(ValueError, match="--sampler dopri5: its solver decides how many evaluations it takes"):
        main(["--sampler", "dopri5"])
    with pytest.raises(ValueError, match=r"'eulr'.*euler"):
        main(["--sampler", "eulr"])
    with pytest.raises(ValueError, match="--batch 100000000000: must be at least 1 and at most 65536"):
        main(["--batch", "100000000000"])

    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(steps, "matmul_peak", full)
    with pytest.raises(ValueError, match="--batch 7: too much for the memory of this machine"):
        main(["--size", "demo", "--rows", "sit", "--rounds", "1", "--batch", "7"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--precision fp16: needs a GPU; choose no or bf16"):
            main(["--precision", "fp16"])
