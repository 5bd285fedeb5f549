"""Every form of per-sample gradients adds up by arbitrary signs, and gives some of its samples, as whole gradients do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gsnr.gradients import Dense, Outer, Patches, PerSample, Rows, Signs, Sum, Zero

SIGNS = {"mixed": [1, -1, -1, 1, 1], "all plus": [1] * 5, "all minus": [-1] * 5}


def forms() -> dict[str, PerSample]:
    made = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=made, dtype=torch.float64)
    few, many = (Outer(random(5, 1, t, 3), random(5, 1, t, 4), torch.Size((4, 3))) for t in (1, 40))
    grouped = Outer(random(5, 2, 2, 30), random(5, 2, 2, 20), torch.Size((40, 30)))
    rows = Rows(torch.randint(7, (5, 3), generator=made), random(5, 3, 2), torch.Size((7, 2)))
    patches = Patches(random(5, 1, 4, 6, 6), random(5, 1, 6, 4, 4), torch.Size((6, 2, 3, 3)), (1, 1), (1, 1), 2)
    return {
        "Dense": Dense(random(5, 4, 3)),
        "Dense, float32": Dense(random(5, 4, 3).float()),
        "Zero": Zero(5, random(4, 3)),
        "Outer by factors": few,
        "Outer formed": many,
        "Outer in groups": grouped,
        "Rows": rows,
        "Patches": patches,
        "Sum": Sum((few, many)),
    }


@pytest.mark.parametrize("name", forms())
def test_against_whole_gradients(name: str) -> None:
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
    rows = torch.tensor([3, 0])
    taken = form.take(rows)
    assert taken.samples == 2
    torch.testing.assert_close(taken.dense().double(), dense[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", forms())
def test_products_with_several_directions(name: str) -> None:
    form = forms()[name]
    dense = form.dense().double().flatten(1)
    directions = [torch.randn(form.dense().shape[1:], generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(3)]
    directions.append(torch.zeros((), dtype=torch.float64).expand(form.dense().shape[1:]))
    for given in (directions, directions[:1]):
        expected = [dense @ direction.flatten() for direction in given]
        for got, wanted in zip(form.dots_each(given), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6 if "float32" in name else 1e-12, atol=1e-6 if "float32" in name else 1e-12)
