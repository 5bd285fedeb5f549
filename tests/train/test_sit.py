"""SiT: official names and sizes, an independent forward, taps, label dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gsnr.train import presets
from gsnr.train.config import resolve
from gsnr.train.models.layers import sincos_2d
from gsnr.train.models.sit import SiT
from tests.train.sit_written_out import reference_forward


def tiny(**changes) -> SiT:
    torch.manual_seed(0)
    model = SiT(**({"input_size": 4, "patch_size": 2, "hidden_size": 16, "depth": 3, "num_heads": 2, "num_classes": 5} | changes))
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.double().eval()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_forward_matches_an_independent_one(patch: int) -> None:
    model = tiny(patch_size=patch)
    x, t, y = torch.randn(3, 4, 4, 4).double(), torch.rand(3).double(), torch.tensor([0, 4, 5])
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), reference_forward(model.state_dict(), x, t, y, 2, patch), rtol=1e-5, atol=1e-6)


def parameters(size: str) -> int:
    with torch.device("meta"):
        model = SiT(**resolve(presets.find(f"sit-{size}")).model.options)
    return sum(p.numel() for p in model.parameters())


def test_official_state_dict_names() -> None:
    expected = {"pos_embed", "y_embedder.embedding_table.weight"}
    for name in ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear", "final_layer.adaLN_modulation.1"):
        expected |= {f"{name}.weight", f"{name}.bias"}
    for i in range(3):
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"):
            expected |= {f"blocks.{i}.{name}.weight", f"blocks.{i}.{name}.bias"}
    assert set(tiny().state_dict()) == expected


@pytest.mark.parametrize(("size", "millions"), [("s2", 33), ("b2", 130), ("l2", 458), ("xl2", 675)])
def test_published_parameter_counts(size: str, millions: int) -> None:
    """33 / 130 / 458 / 675 M (DiT and SiT papers, Table 1)."""
    assert round(parameters(size) / 1e6) == millions


def test_parameter_count_of_the_official_xl2() -> None:
    """The official SiT-XL/2 has 675,129,632: it counts the 256 fixed positions, and predicts 4 more channels (a variance) in each of 4 cells."""
    assert parameters("xl2") + 256 * 1152 + 4 * 4 * (1152 + 1) == 675_129_632


def test_position_table_against_its_formula() -> None:
    table = sincos_2d(4, 16).numpy()[0]
    for row in range(4):
        for column in range(4):
            omega = 1 / 10000 ** (np.arange(4) / 4)
            expected = np.concatenate([np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)])
            np.testing.assert_allclose(table[row * 4 + column], expected, atol=1e-6)


def test_taps_are_what_hooks_see_and_stopping_changes_nothing() -> None:
    model = tiny()
    x, t, y = torch.randn(2, 4, 4, 4).double(), torch.rand(2).double(), torch.tensor([1, 2])
    seen: dict[int, Tensor] = {}
    for k, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _m, _i, out, k=k: seen.update({k: out}))
    velocity, hidden = model.forward_with_taps(x, t, y, taps=(1, 3))
    assert set(hidden) == {1, 3}
    for k in hidden:
        assert torch.equal(hidden[k], seen[k])
    assert torch.equal(velocity, model(x, t, y))
    seen.clear()
    nothing, early = model.forward_with_taps(x, t, y, taps=(2,), stop=True)
    assert nothing is None
    assert set(seen) == {1, 2}
    assert torch.equal(early[2], seen[2])
    with pytest.raises(ValueError, match="blocks 1 to 3"):
        model.forward_with_taps(x, t, y, taps=(4,))


def test_label_dropout_is_a_mask() -> None:
    model = tiny()
    x, t, y = torch.randn(3, 4, 4, 4).double(), torch.rand(3).double(), torch.tensor([0, 1, 2])
    dropped = model(x, t, y, torch.tensor([False, True, False]))
    torch.testing.assert_close(dropped, model(x, t, torch.tensor([0, 5, 2])))


def test_starts_at_zero_velocity() -> None:
    model = SiT(input_size=4, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    assert torch.count_nonzero(model(torch.randn(2, 4, 4, 4), torch.rand(2), torch.tensor([0, 1]))) == 0


def test_is_a_diffusers_model(tmp_path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    again = SiT.from_pretrained(tmp_path).double().eval()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="patch_size 3"):
        SiT(input_size=4, patch_size=3)
    with pytest.raises(ValueError, match="num_heads 5"):
        SiT(hidden_size=16, num_heads=5)
