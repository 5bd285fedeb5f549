"""The readability probe against numpy and scikit-learn from the files of a run, on a known share of variance, and the vertex rule by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from gsnr import table
from gsnr.figures import fig_readability
from gsnr.intervals import NORMAL_95
from gsnr.probes import readability
from gsnr.probes.common import ridge, summary, vertex
from gsnr.probes.common.command import main
from gsnr.probes.common.readings import Joined, Readings
from gsnr.probes.common.ridge import CHOOSES, SOLVES, Outputs, Ridge
from gsnr.train.data import permutation
from gsnr.train.data.heldout import order
from gsnr.train.data.rng import draw
from tests.conftest import call
from tests.probes.subjects import subject_of

WORDS = ("--probe", "readability", "--bins", 2, "--n-images", 16, "--train-images", 32)
PENALTIES = tuple(penalty for penalty in ridge.PENALTIES if penalty >= 0.01)  # float32 hidden states determine these readers well
LAYER, BLOCK, BIN = "15:mid_block.resnets.1", 2, 1


@pytest.fixture(scope="module")
def rows(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("readability")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ridge, "PENALTIES", PENALTIES)
        assert call(main, "--ckpt", smoke_run, *WORDS, "--out", out) == 0
    return table.read(out / "readability.parquet")


def value(rows: pd.DataFrame, **columns: object) -> pd.Series:
    """The one row with these."""
    for column, wanted in columns.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1
    return rows.iloc[0]


def samples(run: Path, split: str, stream: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states after the block (N,T,D) and the layer (N,T,C), float64, in the bin."""
    subject = subject_of(run)
    data = subject.splits[split].take(images, ("mean", "std", "label", "G4"))
    drawn = draw(0, stream, images, subject.header.latent_shape)
    t = (BIN + drawn.u) / 2
    x0 = (data["mean"] + data["std"] * drawn.posterior.astype(np.float64)) * subject.header.scale
    x_t = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * drawn.noise
    inputs = (torch.from_numpy(x_t), torch.from_numpy(t), torch.from_numpy(data["label"]))
    with torch.no_grad():
        h = subject.checkpoint.model.double().forward_with_taps(*inputs, taps=(BLOCK,), stop=True)[1][BLOCK]
    layer = subject.header.layers["G4"].index(LAYER)
    return h.numpy(), data["G4"][:, layer].astype(np.float64).reshape(len(images), data["G4"].shape[2], -1).transpose(0, 2, 1)


def test_one_cell_by_hand(smoke_run: Path, rows: pd.DataFrame) -> None:
    """Block, bin and layer: penalties searched with scikit-learn, R^2 and cosine and their jackknife written out.

    The probe's hidden states are float32, and these readers use directions of 1e-6 of their variance: hence 5e-4 of R^2, 2 % of its interval.
    """
    images = permutation.image_of(np.arange(32), subject_of(smoke_run).splits["train"].size, 0)
    h, y = samples(smoke_run, "train", "fit", images)
    flat_h, flat_y = h.reshape(-1, h.shape[2]), y.reshape(-1, y.shape[2])
    part = 4 * h.shape[1]

    def fit(rows: slice, penalty: float):  # type: ignore[no-untyped-def]
        scaler = StandardScaler().fit(flat_h[rows])
        model = SklearnRidge(alpha=penalty * len(flat_h[rows]), solver="cholesky").fit(scaler.transform(flat_h[rows]), flat_y[rows])
        return lambda x: model.predict(scaler.transform(x))

    errors = {p: np.square(fit(slice(part, None), p)(flat_h[:part]) - flat_y[:part]).sum() for p in PENALTIES}
    reader = fit(slice(None), min(errors, key=errors.__getitem__))
    held_h, held_y = samples(smoke_run, "heldout", "heldout", order(256)[:16])
    guess = reader(held_h.reshape(-1, held_h.shape[2])).reshape(held_y.shape)
    residual, total = np.square(held_y - guess).sum((1, 2)), np.square(held_y - y.mean(0)).sum((1, 2))
    cosine = ((guess * held_y).sum(2) / np.linalg.norm(guess, axis=2) / np.linalg.norm(held_y, axis=2)).mean(1)
    constant = (held_y @ y.mean((0, 1)) / np.linalg.norm(held_y, axis=2) / np.linalg.norm(y.mean((0, 1)))).mean()
    here = {"bin": BIN, "target": f"G4/{LAYER}", "control": "none"}
    found = value(rows, **here, group=f"block {BLOCK}", metric="readable_r2")
    assert found["value"] == pytest.approx(1 - residual.sum() / total.sum(), abs=5e-4)
    left_out = [1 - np.delete(residual, i).sum() / np.delete(total, i).sum() for i in range(16)]
    half = NORMAL_95 * np.sqrt(15 * np.var(left_out))
    assert found["high"] - found["value"] == pytest.approx(half, rel=2e-2) == found["value"] - found["low"]
    assert value(rows, **here, group=f"block {BLOCK}", metric="readable_cosine")["value"] == pytest.approx(cosine.mean(), abs=5e-4)
    assert value(rows, **here, metric="constant_cosine")["value"] == pytest.approx(constant, abs=1e-5)


def test_the_table(smoke_run: Path, rows: pd.DataFrame) -> None:
    subject = subject_of(smoke_run)
    depth, layers = subject.checkpoint.config.model.depth, sum(shape[0] for shape in subject.header.groups.values())
    r2 = rows[rows["metric"] == "readable_r2"]
    assert len(r2) == 2 * depth * (layers + 1) * 2 and set(r2["group"]) == {f"block {k}" for k in range(1, depth + 1)}
    assert set(r2["target"]) >= {"latent", "teacher/demo", f"G4/{LAYER}"}
    chosen, trained = rows[rows["metric"] == "predicted_weight"], rows[rows["metric"] == "router_weight"]
    assert (chosen.groupby(["bin", "target"])["value"].sum() == 1).all() and set(chosen["target"]) == {"alpha_mid", "alpha_deep", "beta"}
    with torch.no_grad():
        weights = subject.checkpoint.alignment.router_weights(torch.tensor([0.75]))
    assert value(trained, bin=BIN, target="alpha_deep", group=LAYER)["value"] == pytest.approx(float(weights["deep"][0, 3]))
    assert value(trained, bin=BIN, target="beta", group="deep")["value"] == pytest.approx(float(weights["beta"][0, 1]))
    best = chosen[(chosen["value"] == 1) & (chosen["bin"] == BIN)].set_index("target")
    shares = rows[(rows["metric"] == "readable_share") & (rows["bin"] == BIN)]
    optimum = rows[(rows["metric"] == "optimal_share") & (rows["bin"] == BIN)].set_index("target")["value"]
    for target, row in best.iterrows():
        here = shares[shares["target"] == target].set_index("group")["value"]
        assert here.idxmax() == row["group"]
        assert target == "beta" or optimum[target] >= here.max() - 1e-9
    said = summary.readable(rows).splitlines()
    assert len(said) == 4 and said[1].split() == ["beta", "alpha", "mid", "alpha", "deep"] and " | " in said[3]
    assert said[3].split()[1].rstrip("?") == best.loc["beta", "group"]
    drawn = fig_readability.draw(rows)
    assert [axes.get_title(loc="left")[:3] for axes in drawn.axes if axes.get_title(loc="left")] == [f"({x})" for x in "abcdefgh"]


def test_a_checkpoint_without_a_router_or_of_other_data(plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A rule without a router beside it."""
    assert call(main, "--ckpt", plain_run, *WORDS, "--out", tmp_path) == 0
    rows = table.read(tmp_path / "readability.parquet")
    assert "router_weight" not in set(rows["metric"]) and "predicted_weight" in set(rows["metric"])
    printed = capsys.readouterr().out
    assert "what a linear reader reads best" in printed and " | " not in printed.split("middle of the bin:")[1]
    fig_readability.draw(rows)
    with pytest.raises(ValueError, match="--train-images 8: must be at least 16"):
        call(main, "--ckpt", plain_run, *WORDS[:-1], 8, "--out", tmp_path / "few")


def test_layers_that_a_split_moved(smoke_run: Path) -> None:
    """Two mid layers of eight: the first two of G3; the other six are deep."""
    subject = subject_of(smoke_run)
    parts = readability._parts(subject, {"mid": torch.ones(1, 2), "deep": torch.ones(1, 6), "beta": torch.ones(1, 2)})
    assert [name.split(":")[0] for _, name in parts["mid"]] == ["8", "9"]
    assert [name.split(":")[0] for _, name in parts["deep"]] == [str(i) for i in range(10, 16)]
    assert readability._parts(subject, {"deep": torch.ones(1, 6), "beta": torch.ones(1, 1)})["deep"] == parts["deep"]
    assert readability._parts(subject, {"G1": torch.ones(1, 4), "beta": torch.ones(1, 1)}).keys() == {"G1"}


def test_a_known_share_of_variance() -> None:
    """y = position + linear in h + noise, of which the linear part has 60 % of the variance between images; of other images' y nothing is left.
    R^2 within 0.03 (300 images of 4 tokens, 8 channels)."""
    rng = np.random.default_rng(0)
    place, mix = 3 * rng.normal(size=(4, 8)), rng.normal(size=(5, 8))
    mix *= np.sqrt(0.6 / np.square(mix).sum(0))

    def draw_some(n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        h = rng.normal(size=(n, 4, 5))
        y = place + h @ mix + np.sqrt(0.4) * rng.normal(size=(n, 4, 8))
        known = np.concatenate([h, np.tile(np.eye(4), (n, 1, 1))], axis=2) + 100  # the hidden state knows its position
        return torch.from_numpy(known).float(), {"own": torch.from_numpy(y).float(), "others": torch.from_numpy(np.roll(y, 1, 0)).float()}

    outputs = Outputs({"own": 8, "others": 8})
    ridge = Ridge(outputs)
    (h, y), (h_choose, y_choose), (h_held, y_held) = draw_some(300), draw_some(100), draw_some(300)
    ridge.add(h, outputs.add(y, SOLVES))
    ridge.add(h_choose, outputs.add(y_choose, CHOOSES))
    readings = Readings({name: torch.cat([y[name], y_choose[name]]).mean(0) for name in y})
    for part in (slice(0, 100), slice(100, None)):
        readings.begin(torch.cat([x[part] for x in y_held.values()], dim=-1))
        readings.add(7, Joined(ridge.solve())(h_held[part]))
    found = {name: measures["readable_r2"] for name, measures in readings.measures(7).items()}
    assert found["own"][0] == pytest.approx(0.6, abs=0.03) and found["own"][1] < 0.6 < found["own"][2]
    assert abs(found["others"][0]) < 0.03


def features(seed: int, groups: int, correlation: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Groups (N,C) of unlike scales and predictabilities, and h (N,D); correlated through a common part."""
    g = torch.Generator().manual_seed(seed)
    h, common = (torch.randn(4000, 6, generator=g, dtype=torch.float64) for _ in range(2))
    scale, share = torch.rand(groups, generator=g) + 0.5, torch.rand(groups, generator=g)
    made = []
    for i in range(groups):
        noise = torch.randn(4000, 6, generator=g, dtype=torch.float64)
        own = share[i] * h @ torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0] + (1 - share[i]) * noise
        made.append(scale[i] * ((1 - correlation) * own + correlation * common))
    return made, h


def best_response(y: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """E[y|h] of jointly normal features: linear."""
    return h @ torch.linalg.lstsq(h, y).solution


@pytest.mark.parametrize("seed", range(4))
def test_the_vertex_between_groups_by_brute_force(seed: int) -> None:
    """The best response to [beta F; (1 - beta) G]: its squared cosine over a grid of beta is largest at the end that the rule names."""
    (one, other), h = features(seed, 2, 0.0)
    moments = [vertex.Moments() for _ in range(2)]
    for kept, f in zip(moments, (one, other), strict=True):
        kept.add(best_response(f, h).reshape(1, 40, 100, 6), f.reshape(1, 40, 100, 6))
    shares, left = zip(*(kept.shares() for kept in moments), strict=True)
    chosen = vertex.choice(np.concatenate(shares), np.concatenate(left, axis=1))
    reached = []
    for beta in np.linspace(0, 1, 21):
        y = torch.cat([beta * one, (1 - beta) * other], dim=1)
        guess = best_response(y, h)
        reached.append(float((guess * y).sum() ** 2 / guess.square().sum() / y.square().sum()))
    assert int(np.argmax(reached)) == (20 if chosen[0][0] == 1 else 0)
    assert max(reached) == pytest.approx(float(np.concatenate(shares).max()), rel=1e-9)


def least_loss(y: torch.Tensor, h: torch.Tensor) -> float:
    """1 - mean cosine of each sample, minimised over linear responses."""
    weight = torch.linalg.lstsq(h, y).solution.requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 1 - torch.cosine_similarity(h @ weight, y, dim=1).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return closure().item()


@pytest.mark.parametrize("seed", range(4))
def test_the_vertex_is_where_the_cosine_loss_is_least(seed: int) -> None:
    """The loss itself, over a grid of beta with a response fitted to each: least at the end that the rule names, and worse at all between."""
    (one, other), h = features(seed, 2, 0.0)
    shares = [float(best_response(f, h).mul(f).sum() / f.square().sum()) for f in (one, other)]
    losses = [least_loss(torch.cat([beta * one, (1 - beta) * other], dim=1), h) for beta in np.linspace(0, 1, 9)]
    assert int(np.argmin(losses)) == (8 if shares[0] > shares[1] else 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_within_a_group_by_brute_force(seed: int) -> None:
    """Three correlated layers: w^T A w / w^T B w over a fine grid of the simplex, and the response fitted anew at the optimum."""
    layers, h = features(seed, 3, 0.45)
    f = torch.stack(layers).reshape(3, 40, 100, 6)
    moments = vertex.Moments()
    moments.add(torch.stack([best_response(x, h) for x in layers]).reshape(f.shape), f)
    w, share = moments.optimum()
    a, b = (np.concatenate(x).mean(0) for x in (moments.a, moments.b))
    steps = np.linspace(0, 1, 101)
    grid = np.array([(x, y, 1 - x - y) for x in steps for y in steps if x + y <= 1 + 1e-12])
    values = np.einsum("gi,ij,gj->g", grid, a, grid) / np.einsum("gi,ij,gj->g", grid, b, grid)
    assert w.min() >= 0 and w.sum() == pytest.approx(1)
    assert values.max() <= share + 1e-12 and values.max() == pytest.approx(share, abs=2e-4)
    np.testing.assert_allclose(w, grid[values.argmax()], atol=0.03)
    mixed = sum(float(x) * layer for x, layer in zip(w, layers, strict=True))
    assert float(best_response(mixed, h).square().sum() / mixed.square().sum()) == pytest.approx(share, rel=1e-9)


def test_of_identical_layers_and_of_too_many() -> None:
    eye = np.eye(2)
    w, share = vertex.simplex_optimum(0.5 * np.ones((2, 2)), np.ones((2, 2)))
    assert share == pytest.approx(0.5) and w.sum() == pytest.approx(1)
    assert vertex.simplex_optimum(np.diag([0.2, 0.7]), eye)[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="13 layers in a group"):
        vertex.simplex_optimum(np.eye(13), np.eye(13))


def test_a_choice_and_what_it_could_be() -> None:
    """The second is clearly behind, the third is not; alone there is nothing to doubt."""
    rng = np.random.default_rng(0)
    left = 0.5 + 0.001 * rng.normal(size=(50, 3))
    assert vertex.choice(np.array([0.5, 0.3, 0.499]), left) == [(1, 0, 1), (0, 0, 0), (0, 0, 1)]
    assert vertex.choice(np.array([0.4]), left[:, :1]) == [(1, 1, 1)]
