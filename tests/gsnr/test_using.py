"""The library in the hands of its users: batches of any nesting, loaders that shuffle, names and globs, results to look at."""

from __future__ import annotations

from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import gsnr
from gsnr.engines import ENGINES
from gsnr.intervals import jackknife_se
from tests.gsnr.problems import PROBLEMS, double, split

Pair = namedtuple("Pair", "x y")


def in_double():
    model, loss, data = PROBLEMS["mlp"]()
    return model.double(), loss, double(data)


NESTINGS = {
    "tuple": (lambda d: (d["x"], d["y"]), lambda b: {"x": b[0], "y": b[1]}),
    "list": (lambda d: [d["x"], d["y"]], lambda b: {"x": b[0], "y": b[1]}),
    "named": (lambda d: Pair(d["x"], d["y"]), lambda b: {"x": b.x, "y": b.y}),
    "deep": (lambda d: {"in": ([d["x"]], "a name", None), "out": (d["y"], 3)}, lambda b: {"x": b["in"][0][0], "y": b["out"][0]}),
    "tokenizer's": (lambda d: (UserDict(x=d["x"]), d["y"]), lambda b: {"x": b[0]["x"], "y": b[1]}),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", NESTINGS)
def test_batches_of_any_nesting(kind: str, engine: str) -> None:
    """Cut into chunks, gone through twice, compared and checked: the numbers are those of a dict of tensors."""
    model, loss, data = in_double()
    pack, unpack = NESTINGS[kind]

    def nested_loss(m, batch):
        if kind == "deep":
            assert batch["in"][1:] == ("a name", None) and batch["out"][1] == 3
        return loss(m, unpack(batch))

    batches = [pack(part) for part in split(data, 5)]
    plain = gsnr.measure(model, loss, split(data, 5), engine=engine, chunk=3, memory_bytes=0)["all"]
    mine = gsnr.measure(model, nested_loss, batches, engine=engine, chunk=3, memory_bytes=0)["all"]
    np.testing.assert_array_equal(mine.q_n, plain.q_n)
    np.testing.assert_array_equal(mine.r_n, plain.r_n)
    if engine == "ghost":
        assert gsnr.check(model, nested_loss, batches[0]).ok
        assert gsnr.compare(model, nested_loss, nested_loss, batches)["all"].cosine == pytest.approx(1)


def test_a_batch_may_be_one_tensor() -> None:
    model, _, data = in_double()
    e = gsnr.measure(model, lambda m, x: m(x).square().sum(1), [data["x"][:6], data["x"][6:]])["all"]
    assert e.n == 13


def test_bad_batches_are_named() -> None:
    model, loss, data = in_double()
    with pytest.raises(ValueError, match=r"batch entry 'b\.1' holds 5 samples, others 13"):
        gsnr.measure(model, loss, [{"a": data["x"], "b": (data["y"], data["y"][:5])}])
    with pytest.raises(ValueError, match="batch entry '1' has no leading sample dimension"):
        gsnr.measure(model, loss, [(data["x"], torch.tensor(1.0))])
    with pytest.raises(ValueError, match="batches must be an iterable of batches, and this is one dict"):
        gsnr.measure(model, loss, data)

    class Graph:
        def __init__(self) -> None:
            self.x = data["x"]

    with pytest.raises(ValueError, match="batch entry '0' is a Graph, which cannot be cut into samples"):
        gsnr.measure(model, loss, [(Graph(), data["x"])])


def test_device_moves_batches() -> None:
    """To "meta" and back there is no way, so a loss that sees meta tensors shows that they were moved; the default moves nothing."""
    model, loss, data = in_double()
    seen = []

    def watching(m, b):
        seen.append(b["x"].device.type)
        return loss(m, {key: torch.empty_like(x, device="cpu").copy_(data[key][: len(x)]) for key, x in b.items()})

    gsnr.measure(model, watching, [data], engine="loop", chunk=13, device="meta", index=lambda b: range(len(b["x"])))
    assert set(seen) == {"meta"}
    assert gsnr.measure(model, loss, [data], device="cpu")["all"].n == 13
    with pytest.raises(ValueError, match="device 'abacus'"):
        gsnr.measure(model, loss, [data], device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda': "):
            gsnr.measure(model, loss, [data], device="cuda")


@pytest.mark.parametrize("engine", ["loop", "vmap", "ghost"])
def test_a_loss_that_changes_its_batch_is_refused(engine: str) -> None:
    """It is called again for the checks and for the second look, and each time would see another batch."""
    model, loss, data = in_double()
    for changes in (lambda x: x.mul_(2.0), lambda x: x[:, 0].zero_()):
        batch = {key: x.clone() for key, x in data.items()}
        with pytest.raises(ValueError, match="the loss changes batch entry 'x' in place, and is called several times for it; work on a copy"):
            gsnr.measure(model, lambda m, b, changes=changes: (changes(b["x"]), loss(m, b))[1], [batch], engine=engine)


def test_parameters_by_name_and_glob() -> None:
    model, loss, data = in_double()
    by_function = gsnr.measure(model, loss, [data], parameters=lambda n: n.startswith("2."))["all"]
    for parameters in ("2.*", ["2.weight", "2.b*"], ("2.weight", "2.bias")):
        assert gsnr.measure(model, loss, [data], parameters=parameters)["all"].gsnr == by_function.gsnr
        assert gsnr.check(model, loss, data, parameters=parameters).ok
    with pytest.raises(ValueError, match=r"parameters: '2.weigth' matches no trainable parameter; near it: 2.weight"):
        gsnr.measure(model, loss, [data], parameters=["0.*", "2.weigth"])
    with pytest.raises(ValueError, match=r"parameters: '2' matches no trainable parameter; near it: 2\.\*"):
        gsnr.measure(model, loss, [data], parameters="2")
    with pytest.raises(ValueError, match="parameters must be a function, a glob or a list of globs, not int"):
        gsnr.measure(model, loss, [data], parameters=2)
    with pytest.raises(ValueError, match=r"^parameters: a Parameter is no name or glob of parameters$"):
        gsnr.measure(model, loss, [data], parameters=list(model.parameters()))


def test_groups_by_name_and_glob() -> None:
    model, loss, data = in_double()
    groups = {"first": "0.*", "biases": ["0.bias", "2.bias"]}
    result = gsnr.measure(model, loss, [data], groups=groups)
    assert result.groups == ("all", "first", "biases")
    own = gsnr.measure(model, loss, [data], groups=lambda n: ("first",) * n.startswith("0.") + ("biases",) * n.endswith("bias"))
    assert [result[g].gsnr for g in result.groups] == [own[g].gsnr for g in result.groups]
    with pytest.raises(ValueError, match=r"groups\['head'\]: 'head.*' matches no trainable parameter; near it"):
        gsnr.measure(model, loss, [data], groups={"head": "head.*"})
    with pytest.raises(ValueError, match="'all' always holds every selected parameter"):
        gsnr.measure(model, loss, [data], groups={"all": "0.*"})
    with pytest.raises(ValueError, match="groups must be a function or a mapping"):
        gsnr.measure(model, loss, [data], groups=["0.*"])


class Noisy(Dataset):
    """An augmentation that draws from torch's random state."""

    def __init__(self, data) -> None:
        self.data = data

    def __len__(self) -> int:
        return 13

    def __getitem__(self, i: int):
        return self.data["x"][i] + 0.1 * torch.randn(5), self.data["y"][i]


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("memory_bytes", [0, 700, None])
@pytest.mark.parametrize("engine", ["ghost", "vmap"])
def test_a_shuffling_loader_is_safe(engine: str, memory_bytes: int | None, own_generator: bool) -> None:
    """Nothing, something or all of the gradients kept: the estimates are those of the samples in their order, and the loader's own random
    state is as it was."""
    model, loss, data = in_double()
    generator = torch.Generator().manual_seed(3) if own_generator else None
    loader = DataLoader(TensorDataset(data["x"], data["y"]), batch_size=4, shuffle=True, generator=generator)
    before = generator.get_state() if generator else torch.get_rng_state()
    on_tuples = lambda m, b: loss(m, {"x": b[0], "y": b[1]})
    straight = gsnr.measure(model, loss, [data], engine=engine)["all"]
    e = gsnr.measure(model, on_tuples, loader, engine=engine, memory_bytes=memory_bytes)["all"]
    assert not np.allclose(e.q_n, straight.q_n), "it did shuffle"
    np.testing.assert_allclose(np.sort(e.q_n), np.sort(straight.q_n), rtol=1e-9)
    np.testing.assert_allclose(e.r_n[np.argsort(e.q_n)], straight.r_n[np.argsort(straight.q_n)], rtol=1e-9)
    assert jackknife_se(e.deleted_gsnr) == pytest.approx(jackknife_se(straight.deleted_gsnr), rel=1e-9)
    assert torch.equal(before, generator.get_state() if generator else torch.get_rng_state())


@pytest.mark.parametrize("own_generator", [True, False])
def test_a_loader_that_augments_meets_the_same_samples_twice(own_generator: bool) -> None:
    """Also where the loss draws random numbers of its own (dropout): r_i sums to ||S||^2 only if both passes saw the same."""
    model, loss, data = in_double()
    model.insert(2, torch.nn.Dropout(0.3))
    generator = torch.Generator().manual_seed(3) if own_generator else None
    loader = DataLoader(Noisy(data), batch_size=4, shuffle=True, generator=generator)
    e = gsnr.measure(model, lambda m, b: loss(m, {"x": b[0], "y": b[1]}), loader, engine="ghost", memory_bytes=900)["all"]
    assert e.r_n.sum() == pytest.approx(e.sum_sq, rel=1e-9)


def test_results_are_short_to_look_at() -> None:
    model, loss, data = in_double()
    result = gsnr.measure(model, loss, [data], groups=lambda n: n)
    both = gsnr.compare(model, loss, lambda m, b: m(b["x"]).square().sum(1), [data])
    merged = result.merge(gsnr.measure(model, loss, [data], groups=lambda n: n))
    for thing in (result, both, merged, result["all"], both["all"], result.moments):
        assert len(repr(thing)) < 250, repr(thing)
        assert "\n" not in repr(thing)
    assert repr(result["all"]).startswith("Estimate('all', n=13, gsnr=")
    assert "no interval" in repr(merged)


def test_summary_and_frame() -> None:
    model, loss, data = in_double()
    result = gsnr.measure(model, loss, [data], groups=lambda n: n)
    frame, text = result.to_frame(), result.summary()
    assert list(frame.index) == list(result.groups)
    assert frame.loc["all", "gsnr"] == result["all"].gsnr
    assert tuple(frame.loc["0.bias", ["gsnr_low", "gsnr_high"]]) == result["0.bias"].ci()
    assert frame["below_detection"].dtype == bool
    assert "fewer than 128 samples" in frame.loc["all", "caution"]
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:7]] == list(result.groups)
    assert all(f"{result[line.split()[0]].gsnr:.3g} [" in line for line in lines[2:7])
    assert all(("below detection" in line) == result[line.split()[0]].below_detection for line in lines[2:7])
    assert lines[7:9] == ["cautions:", "  n = 13: fewer than 128 samples (every group)"]
    merged = result.merge(result)
    assert np.isnan(merged.to_frame().loc["all", "gsnr_low"]) and "[" not in merged.summary().splitlines()[2]


def test_summary_and_frame_of_a_comparison() -> None:
    model, loss, data = in_double()
    both = gsnr.compare(model, loss, lambda m, b: m(b["x"]).square().sum(1), [data], groups=lambda n: n)
    frame, lines = both.to_frame(), both.summary().splitlines()
    assert list(frame.index) == list(both.groups) == [line.split()[0] for line in lines[2:7]]
    assert frame.loc["all", "cosine"] == both["all"].cosine
    assert tuple(frame.loc["all", ["gsnr_difference_low", "gsnr_difference_high"]]) == both["all"].gsnr_difference_ci()
