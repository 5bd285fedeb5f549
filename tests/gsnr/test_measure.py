"""The public call: selection, groups, invariances, merging, errors that name what is wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import gsnr
from gsnr.engines import ENGINES
from gsnr.estimates import jackknife_se
from tests.gsnr.problems import PROBLEMS, double, split


def in_double(name: str = "mlp"):
    model, loss, data = PROBLEMS[name]()
    return model.double(), loss, double(data)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_invariant_to_loss_scale(engine: str, scale: float, dtype: torch.dtype, tolerance: float) -> None:
    """No epsilon anywhere. In float32 U is a difference of numbers n times its size, each good to 1e-6."""
    model, loss, data = in_double("conv")
    model, data = model.to(dtype), {k: v.to(dtype) for k, v in data.items()}
    one = gsnr.measure(model, loss, [data], engine=engine)["all"]
    other = gsnr.measure(model, lambda m, b: scale * loss(m, b), [data], engine=engine)["all"]
    assert other.gsnr == pytest.approx(one.gsnr, rel=tolerance)
    assert other.ci() == pytest.approx(one.ci(), rel=tolerance)
    assert other.detection_limit == pytest.approx(one.detection_limit, rel=tolerance)


def test_invariant_to_order_and_micro_batches() -> None:
    model, loss, data = in_double()
    one = gsnr.measure(model, loss, [data])["all"]
    shuffled = {k: v[torch.randperm(13, generator=torch.Generator().manual_seed(1))] for k, v in data.items()}
    for engine in ENGINES:
        for batches in ([shuffled], split(data, 1, 4, 7), split(data, 6)):
            other = gsnr.measure(model, loss, batches, engine=engine)["all"]
            assert other.gsnr == pytest.approx(one.gsnr, rel=1e-9)
            assert jackknife_se(other.deleted_gsnr) == pytest.approx(jackknife_se(one.deleted_gsnr), rel=1e-9)
            assert other.ci() == pytest.approx(one.ci(), rel=1e-9)
            assert other.detection_limit == pytest.approx(one.detection_limit, rel=1e-9)


def test_merge_equals_measuring_together() -> None:
    model, loss, data = in_double("conv")
    a, b = split(data, 4)
    merged = gsnr.measure(model, loss, [a]).merge(gsnr.measure(model, loss, [b]))
    together = gsnr.measure(model, loss, [data])
    assert merged["all"].n == 9
    assert merged["all"].signal == pytest.approx(together["all"].signal, rel=1e-9)
    assert merged["all"].noise == pytest.approx(together["all"].noise, rel=1e-9)
    np.testing.assert_allclose(merged.losses, together.losses)
    with pytest.raises(ValueError, match="no interval"):
        merged["all"].ci()
    with pytest.raises(ValueError, match="do not merge"):
        merged.merge(gsnr.measure(model, loss, [a], groups=lambda n: n))


def test_groups_and_selection() -> None:
    model, loss, data = in_double()
    result = gsnr.measure(model, loss, [data], groups=lambda n: (n.split(".")[0], n.split(".")[1]))
    assert result.groups == ("all", "0", "weight", "bias", "2")
    assert result["0"].signal + result["2"].signal == pytest.approx(result["all"].signal, rel=1e-9)
    alone = gsnr.measure(model, loss, [data], parameters=lambda n: n.startswith("2."))
    assert alone["all"].gsnr == pytest.approx(result["2"].gsnr, rel=1e-9)
    model[0].requires_grad_(False)
    assert gsnr.measure(model, loss, [data])["all"].gsnr == pytest.approx(result["2"].gsnr, rel=1e-9)


def test_a_group_the_loss_does_not_touch_is_undefined() -> None:
    model, loss, data = in_double()
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
    for engine in ("loop", "vmap"):
        result = gsnr.measure(model, loss, [data], engine=engine, groups=lambda n: n)
        assert np.isnan(result["unused"].gsnr)
        assert result["unused"].n_zero == 13


def test_errors_name_what_is_wrong() -> None:
    model, loss, data = in_double()
    with pytest.raises(ValueError, match="choose from auto, loop, vmap"):
        gsnr.measure(model, loss, [data], engine="magic")
    with pytest.raises(ValueError, match="no parameter selected"):
        gsnr.measure(model, loss, [data], parameters=lambda n: False)
    with pytest.raises(ValueError, match="at least 2"):
        gsnr.measure(model, loss, split(data, 1)[:1])
    with pytest.raises(ValueError, match="at least 2"):
        gsnr.measure(model, loss, [])
    for engine in ("loop", "vmap"):
        with pytest.raises(ValueError, match="one value per sample"):
            gsnr.measure(model, lambda m, b: loss(m, b).mean(), [data], engine=engine)
    with pytest.raises(ValueError, match="'y' holds 5 samples"):
        gsnr.measure(model, loss, [{"x": data["x"], "y": data["y"][:5]}])
    broken = {"x": data["x"].clone(), "y": data["y"]}
    broken["x"][3] = float("nan")
    with pytest.raises(ValueError, match=r"not finite \(samples 3\)"):
        gsnr.measure(model, loss, [broken])
    with pytest.raises(KeyError, match="no group 'nope'"):
        gsnr.measure(model, loss, [data])["nope"]


def test_batches_that_change_their_order_are_refused() -> None:
    """r_i must meet its own q_i: a shuffling loader whose gradients do not fit in memory would pair them wrongly."""
    model, loss, data = in_double()

    class Shuffled:
        generator = torch.Generator().manual_seed(1)

        def __iter__(self):
            index = torch.randperm(13, generator=self.generator)
            return iter([{k: v[index] for k, v in data.items()}])

    with pytest.raises(ValueError, match="another order"):
        gsnr.measure(model, loss, Shuffled(), memory_bytes=0)
    assert gsnr.measure(model, loss, Shuffled())["all"].n == 13
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1"):
        gsnr.measure(model, loss, [data], chunk=-1)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_loss_without_gradient_is_said(engine: str) -> None:
    model, loss, data = in_double()
    with pytest.warns(UserWarning, match="all 13 gradients are exactly zero"):
        assert np.isnan(gsnr.measure(model, lambda m, b: loss(m, b).detach(), [data], engine=engine)["all"].gsnr)
    with pytest.raises(ValueError, match="floating-point tensor, not torch"):
        gsnr.measure(model, lambda m, b: m(b["x"]).argmax(1), [data], engine=engine)
    with pytest.raises(ValueError, match=r"a batch without tensors \(str\); batches must be an iterable of dicts"):
        gsnr.measure(model, loss, ["x"], engine=engine)
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        gsnr.measure(model, loss, [data], engine=engine)["all"].ci(95)


def test_batch_norm_in_train_mode_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    data = {"x": torch.randn(8, 5)}

    def loss(m: torch.nn.Module, b: dict[str, torch.Tensor]) -> torch.Tensor:
        return m(b["x"]).square().sum(1)

    with pytest.raises(ValueError, match="module '1' is batch norm in train mode"):
        gsnr.measure(model, loss, [data])
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert gsnr.measure(model.eval(), loss, [data])["all"].n == 8


def test_docstring_example_runs() -> None:
    """The ten lines in `help(gsnr)` are a program that works."""
    assert gsnr.__doc__ is not None
    program = gsnr.__doc__[: gsnr.__doc__.index("    measure  ")]
    lines = [line[4:] for line in program.splitlines() if line.startswith("    ")]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "('all', '1', '3')" in done.stdout, "the MLP"
    assert "('all', '0', '3')" in done.stdout, "the convolutional net"


def test_tables_and_figures_import_without_torch() -> None:
    names = "gsnr.figures.fig2_gsnr, gsnr.figures.fig5_router, gsnr.figures.command"
    beside = "gsnr.table.read, gsnr.verdicts, gsnr.estimates, gsnr.intervals, gsnr.comparison"
    code = f"import sys, gsnr; {beside}; import {names}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
