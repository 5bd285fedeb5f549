"""Every form of per-sample gradients adds up by arbitrary signs, and gives some of its samples, as whole gradients do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gsnr.gradients import Dense, Outer, Patches, PerSample, Rows, Signs, Sum, Zero, base, inner

WAYS = ("by cost", "form", "gram", "turn", "unfold", "pixels")
SIGNS = {"mixed": [1, -1, -1, 1, 1], "all plus": [1] * 5, "all minus": [-1] * 5}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to norms and products by name, wherever a form has it."""
    monkeypatch.setattr(base, "PREFERRED", (request.param,))


def forms(seed: int = 0) -> dict[str, PerSample]:
    made = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=made, dtype=torch.float64)
    few, many = (Outer(random(5, 1, t, 3), random(5, 1, t, 4), torch.Size((4, 3))) for t in (1, 40))
    grouped = Outer(random(5, 2, 2, 30), random(5, 2, 2, 20), torch.Size((40, 30)))
    rows = Rows(torch.randint(7, (5, 3), generator=made), random(5, 3, 2), torch.Size((7, 2)))
    patches = Patches(random(5, 1, 4, 6, 6), random(5, 1, 6, 4, 4), torch.Size((6, 2, 3, 3)), (1, 1), (1, 1), 2)
    strided = Patches(random(5, 1, 3, 7, 9), random(5, 1, 4, 3, 3), torch.Size((4, 3, 3, 2)), (2, 3), (1, 2), 1)
    drawn = Patches(random(5, 2, 3, 18, 17), random(5, 2, 4, 17, 16), torch.Size((4, 3, 2, 2)), (1, 1), (1, 1), 1)
    return {
        "Dense": Dense(random(5, 4, 3)),
        "Dense, float32": Dense(random(5, 4, 3).float()),
        "Zero": Zero(5, random(4, 3)),
        "Outer by factors": few,
        "Outer formed": many,
        "Outer in groups": grouped,
        "Rows": rows,
        "Patches": patches,
        "Patches, strided": strided,
        "Patches of two draws": drawn,
        "Sum": Sum((few, many)),
    }


@pytest.mark.parametrize("name", forms())
def test_against_whole_gradients(name: str, way: None) -> None:
    """Float64 rounding: 1e-12; float32 gradients are widened to the sums' dtype first."""
    form = forms()[name]
    dense = form.dense().double()
    for signs in SIGNS.values():
        sign_C = np.array(signs, dtype=float)
        plus, minus = (torch.full(dense.shape[1:], 0.5, dtype=torch.float64) for _ in range(2))
        q = form.accumulate(plus, minus, Signs.of(sign_C, torch.device("cpu")))
        for total, s in ((plus, 1), (minus, -1)):
            torch.testing.assert_close(total, 0.5 + dense[torch.from_numpy(sign_C == s)].sum(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(q, dense.flatten(1).square().sum(1), rtol=1e-6 if "float32" in name else 1e-12, atol=1e-12)
    alone = torch.zeros(dense.shape[1:], dtype=torch.float64)  # one sum in both places, which signs of one kind allow
    form.accumulate(alone, alone, Signs.of(np.ones(5), torch.device("cpu")))
    torch.testing.assert_close(alone, dense.sum(0), rtol=1e-12, atol=1e-12)
    rows = torch.tensor([3, 0])
    taken = form.take(rows)
    assert taken.samples == 2
    torch.testing.assert_close(taken.dense().double(), dense[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", forms())
def test_products_against_whole_gradients(name: str, way: None) -> None:
    """With directions one by one and several at once, and with another loss's gradients. Float64 rounding, or float32's."""
    form, other = forms()[name], forms(seed=1)[name]
    dense, theirs = form.dense().flatten(1), other.dense().flatten(1)
    close = {"rtol": 1e-12, "atol": 1e-11} if dense.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    shape = form.dense().shape[1:]
    directions = [theirs[0].view(shape), form.dense().sum(0), torch.zeros((), dtype=dense.dtype).expand(shape)]
    expected = torch.stack([dense @ d.flatten() for d in directions]).double()
    torch.testing.assert_close(form.products(directions), expected, **close)
    torch.testing.assert_close(form.products(directions[:1]), expected[:1], **close)
    torch.testing.assert_close(torch.stack([form.dots(d) for d in directions]), expected, **close)
    torch.testing.assert_close(form.square_norms(), (dense * dense).sum(1).double(), **close)
    torch.testing.assert_close(inner(form, other), (dense * theirs).sum(1).double(), **close)


def test_shapes_decide_the_way() -> None:
    """Ghost's layers at the sizes of a SiT, and small ones: what is cheapest for one question need not be for another."""
    outer = lambda t, d, p: Outer(torch.empty(2, 1, t, d), torch.empty(2, 1, t, p), torch.Size((p, d)))
    wide, narrow, few = outer(256, 768, 3072), outer(256, 64, 64), outer(1, 768, 3072)
    assert [wide._way(sums=True), narrow._way(sums=True), few._way(sums=True)] == ["form", "form", "gram"]
    assert [wide._way(sums=False), narrow._way(sums=False), few._way(sums=False)] == ["gram", "form", "gram"]
    assert [wide._way(False, wide), narrow._way(False, narrow), few._way(False, wide)] == ["gram", "form", "gram"]
    image = lambda channels, side: Patches(
        torch.empty(2, 1, channels, side + 2, side + 2),
        torch.empty(2, 1, channels, side, side),
        torch.Size((channels, channels, 3, 3)),
        (1, 1),
        (1, 1),
        1,
    )
    head, early = image(768, 16), image(32, 32)
    assert [head._way(sums=True), head._way(sums=False), head._way(False, head)] == ["form", "pixels", "pixels"]
    assert [early._way(sums=True), early._way(sums=False), early._way(False, early)] == ["form", "form", "form"]
    assert [min(x._forming(), key=lambda way: x._forming()[way]) for x in (head, early)] == ["unfold", "convolve"]


def test_a_way_changes_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 products with S and norms, formed or not: within 1e-6 of |g||S| of float64 (1e-8 to 1e-7 measured at widths 64 to 768)."""
    made = torch.Generator().manual_seed(0)
    a, b, s = (torch.randn(*shape, generator=made) for shape in ((3, 1, 64, 96), (3, 1, 64, 128), (128, 96)))
    exact = torch.einsum("cgtp,cgtd->cpd", b.double(), a.double()).flatten(1)
    norm = exact.norm(dim=1)
    for way in ("form", "turn", "gram"):
        monkeypatch.setattr(base, "PREFERRED", (way,))
        outer = Outer(a, b, torch.Size((128, 96)))
        off = (outer.products([s, -s]) - torch.stack([exact @ s.double().flatten(), -exact @ s.double().flatten()])).abs() / (
            norm * s.double().norm()
        )
        assert off.max() < 1e-6
        torch.testing.assert_close(outer.square_norms(), norm.square(), rtol=1e-6, atol=0)
