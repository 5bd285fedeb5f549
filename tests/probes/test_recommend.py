"""Criteria and recommendations: each quantity against a naive one in float64, and the arithmetic of picks by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from gsnr import ranking, recommend, table
from gsnr.probes.common import reading_rows, recommendation
from gsnr.probes.common.case import Case
from gsnr.probes.common.kernels import cka
from gsnr.probes.common.readings import Joined, Readings
from gsnr.probes.common.ridge import CHOOSES, SOLVES, Outputs, Ridge
from gsnr.probes.criteria import balance, gap, gate_ablation, utility
from gsnr.probes.criteria import cka as cka_criterion
from gsnr.train import fork
from gsnr.train.command import main as train
from gsnr.train.data.controls import ControlledSplit
from gsnr.train.models.sit import SiT


def _naive_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Mean over distinct quadruples, Song et al. 2012, Eq. 4."""
    n, pairs, triples, quads = len(k), [], [], []
    for i in range(n):
        for j in range(n):
            if j == i:
                continue
            pairs.append(k[i, j] * m[i, j])
            for q in range(n):
                if q in (i, j):
                    continue
                triples.append(k[i, j] * m[i, q])
                quads += [k[i, j] * m[q, r] for r in range(n) if r not in (i, j, q)]
    return float(np.mean(pairs) + np.mean(quads) - 2 * np.mean(triples))


def test_cka_against_loops_over_quadruples() -> None:
    generator = np.random.default_rng(0)
    h = generator.normal(size=(9, 3))
    y = h @ generator.normal(size=(3, 4)) + generator.normal(size=(9, 4))
    k, m = h @ h.T, y @ y.T
    naive = _naive_hsic(k, m) / np.sqrt(_naive_hsic(k, k) * _naive_hsic(m, m))
    assert cka(k, m) == pytest.approx(naive, rel=1e-10)
    assert cka_criterion.with_interval(h, h)[0] == pytest.approx(1.0)


def test_utility_against_the_directional_derivative_of_a_loop() -> None:
    """A quadratic loss: central differences are exact, whatever the step; parameters come back bit for bit."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64)) for _ in range(2)]
    x_ND, direction = torch.randn(6, 8, generator=generator, dtype=torch.float64), [torch.randn(4, generator=generator).double() for _ in range(2)]
    losses = lambda: (x_ND @ torch.cat([p for p in parameters])).square()
    before = [p.detach().clone() for p in parameters]
    found = utility.slopes(parameters, direction, losses)
    d = np.concatenate([x.numpy() for x in direction])
    d /= np.sqrt(sum(v * v for v in d))
    theta = np.concatenate([x.numpy() for x in before])
    for n in range(6):
        slope = 0.0
        for i in range(8):
            slope += 2 * sum(x_ND[n, j].item() * theta[j] for j in range(8)) * x_ND[n, i].item() * d[i]
        assert found[n].item() == pytest.approx(slope, rel=1e-9)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_gap_of_a_student_with_a_known_linear_share(share: float) -> None:
    """Target = sqrt(share) A h + noise: R^2 is the share; another row, wholly readable, makes R* 1. Within .01, as 16384 rows allow."""
    generator = torch.Generator().manual_seed(1)
    images, tokens, width = 256, 64, 8

    def drawn(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.randn(n, tokens, width, generator=generator)
        noise = torch.randn(n, tokens, width, generator=generator)
        return h, share**0.5 * h.roll(1, -1) + (1 - share) ** 0.5 * noise

    outputs = Outputs({"t": width})
    ridge = Ridge(outputs)
    for part in (SOLVES, CHOOSES):
        h, y = drawn(images)
        ridge.add(h, outputs.add({"t": y}, part))
    readings, (h, y) = Readings({"t": torch.zeros(tokens, width)}), drawn(images)
    readings.begin(y)
    readings.add(1, Joined(ridge.solve())(h))
    value, left_N = reading_rows.shares(readings, 1, "t")
    assert gap.gap(np.array([value]), 1.0) == pytest.approx(1 - share, abs=0.01)
    naive = [1 - r for r in left_N]
    assert np.std(naive) < 0.01 and len(naive) == images


def test_what_a_target_adds_is_white_and_without_what_the_latent_says() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20000, 3, generator=generator, dtype=torch.float64)
    y = torch.cat([x @ torch.randn(3, 4, generator=generator, dtype=torch.float64), x[:, :1].square()], dim=1)
    mean_C, whitening_CR = reading_rows.whitening(y)
    white = (y - mean_C) @ whitening_CR
    assert whitening_CR.shape == (5, 4)  # four that follow from three by a linear map, and a square
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(4, dtype=torch.float64), atol=1e-8, rtol=0)
    assert reading_rows.whitening(torch.ones(9, 2, dtype=torch.float64))[1].shape[1] == 0  # a constant target has no direction


def test_balance_is_minus_one_where_denoising_holds_the_target() -> None:
    """g_d = -lambda g_a in every sample: rho -1 to rounding, with an interval of no width."""
    import gsnr

    generator = torch.Generator().manual_seed(3)
    model, data = nn.Linear(5, 1, bias=False), [{"x": 1 + torch.randn(40, 5, generator=generator)}]
    a = lambda model, batch: model(batch["x"])[:, 0]
    found = gsnr.compare(model, a, lambda model, batch: -0.5 * a(model, batch), data)["all"]
    assert balance.rho(found, 0.5) == pytest.approx((-1.0, -1.0, -1.0), abs=1e-5)


def test_gate_ablation_against_a_model_without_the_block() -> None:
    torch.manual_seed(0)
    model = SiT(input_size=4, patch_size=1, in_channels=4, hidden_size=16, depth=3, num_heads=2, num_classes=4).eval()
    for p in model.parameters():
        p.data.normal_(std=0.2)
    x, t, y = torch.randn(5, 4, 4, 4), torch.rand(5), torch.arange(5) % 4
    with torch.no_grad():
        found = gate_ablation.changes(model, model.blocks[1], x, t, y)
        whole = model(x, t, y)
        model.blocks = nn.ModuleList([model.blocks[0], model.blocks[2]])
        without = model(x, t, y)
    naive = [float((w - v).norm() / v.norm()) for w, v in zip(without, whole, strict=True)]
    assert found.tolist() == pytest.approx(naive, rel=1e-5)


def test_spearman_regret_and_controls_by_hand() -> None:
    criterion = np.array([3.0, 1.0, np.nan, 2.0])
    benefit = np.array([[0.1, 0.3], [0.5, 0.7], [-0.2, 0.0], [0.2, 0.2]])
    found = ranking.judge(criterion, benefit)
    assert found.spearman == pytest.approx(stats.spearmanr([3, 1, 0, 2], [0.2, 0.6, -0.1, 0.2]).statistic)
    assert found.pick == 0 and found.regret == pytest.approx(0.4) and found.regret_sd == pytest.approx(0.0)
    worse = ranking.judge(criterion, -1 - np.abs(benefit))  # all harm: doing nothing was best
    assert worse.regret == pytest.approx(1.2)
    assert ranking.misplaced(np.array([2.0, 1.0, 1.5, np.nan]), np.array([False, False, True, True])) == [2]
    assert ranking.misplaced(np.array([2.0, np.nan, 0.5]), np.array([False, False, True])) == [2]  # above a target that is not defined
    assert ranking.pick(np.full(3, np.nan)) is None
    low, high = ranking.spearman_interval(np.arange(30.0), np.arange(30.0) + np.random.default_rng(0).normal(size=30))
    assert 0.9 < low < high <= 1


VANILLA = ["--preset", "smoke", "--alignment", "none", "--trackers", "none", "--data.demo-train", "32", "--data.demo-heldout", "16", "--batch", "4"]
ROWS = "repa@1,uniform-deep@2,uniform-deep@1:0-0.5,shuffled:repa@1,constant:repa@1"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("parent") / "run"
    train([*VANILLA, "--steps", "4", "--out", str(run)])
    return run


def test_recommend_from_a_vanilla_run(parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All criteria; then against forks, whose numbers it takes from their table."""
    monkeypatch.setattr(recommend, "FIT", {"fit_samples": 256, "fit_steps": 3})
    words = ["--ckpt", str(parent), "--rows", ROWS, "--n-images", "16", "--train-images", "32", "--lookahead", "1"]
    assert recommend.main([*words, "--out", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr().out
    assert "| recoverability gap |" in printed and "| repa@1 |" in printed and "shuffled:repa@1 (control)" in printed
    assert {path.name for path in (tmp_path / "one").glob("recommend.*")} == {f"recommend.{end}" for end in ("parquet", "csv", "md", "png")}
    rows = pd.read_csv(tmp_path / "one/recommend.csv").set_index("row")
    assert np.isnan(rows.loc["constant:repa@1", ["gsnr", "gap", "readability"]].astype(float)).all()
    assert (rows["gate_ablation_low"] <= rows["gate_ablation"]).all() and rows["lookahead"].notna().all()
    forks = tmp_path / "forks"
    few = "repa@1,uniform-deep@2,uniform-deep@1:0-0.5,shuffled:repa@1"
    fork.main(["--ckpt", str(parent), "--rows", few, "--steps", "1", "--seeds", "0,1", "--out", str(forks)])
    capsys.readouterr()
    chosen = [*words[:4], "--n-images", "16", "--train-images", "32", "--criteria", "gap,cosine,gate_ablation", "--forks", str(forks)]
    assert recommend.main([*chosen, "--out", str(tmp_path / "two")]) == 0
    assert "Spearman over targets" in capsys.readouterr().out
    runs = pd.read_csv(forks / "table.csv").pivot(index="row", columns="seed", values="velocity_loss")
    gains = pd.read_csv(tmp_path / "two/recommend.csv").set_index("row")["benefit"]
    judged = table.read(tmp_path / "two/judged.parquet", "judged")
    assert set(judged["group"]) == {"velocity_loss"} and set(judged["target"]) <= {"gap", "cosine", "gate_ablation"}
    changes = pd.read_csv(tmp_path / "two/recommend.csv").set_index("row")["gate_ablation"][few.split(",")]
    naive = stats.spearmanr(changes, gains[few.split(",")]).statistic
    assert judged.set_index(["target", "metric"])["value"]["gate_ablation", "spearman"] == pytest.approx(naive)
    assert gains["repa@1"] == pytest.approx((runs.loc["none"] - runs.loc["repa@1"]).mean()) and np.isnan(gains["constant:repa@1"])
    about = json.loads((forks / "forks.json").read_text())
    (forks / "forks.json").write_text(json.dumps(about | {"about": about["about"] | {"checkpoint_sha": "0"}}))
    with pytest.raises(ValueError, match=r"whose weights are not those of"):
        recommend.main([*chosen, "--out", str(tmp_path / "three")])
    assert not (tmp_path / "three").exists()


def test_rows_of_a_run_trained_on_a_control_have_features_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make balance` compares: the same true target on runs that had it, and on runs that had another image's."""
    run = tmp_path / "run"
    train(["--preset", "smoke", "--data.control", "shuffled", *VANILLA[4:], "--steps", "2", "--out", str(run)])
    seen: list[Case] = []
    monkeypatch.setattr(recommendation, "measure", lambda case, _: seen.append(case) or [])
    monkeypatch.setattr(recommendation, "write", lambda *_: "")
    monkeypatch.setattr(recommend, "_draw", lambda out: out)
    words = ["--ckpt", str(run), "--rows", "repa@1,shuffled:repa@1", "--n-images", "16", "--train-images", "32", "--out", str(tmp_path / "out")]
    assert recommend.main(words) == 0
    (case,) = seen
    own, shuffled = (case.under(control).splits["heldout"] for control in ("none", "shuffled"))
    assert not isinstance(own, ControlledSplit) and isinstance(shuffled, ControlledSplit)
    assert not isinstance(shuffled.stored, ControlledSplit)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--rows repa@1", "name two rows or more"),
        ("--rows repa@1,disperse", "is coupled"),
        ("--criteria gp", "criteria.*'gp' does not exist|'gp' does not exist"),
        ("--criteria lookahead", "needs --lookahead K"),
        ("--validate --forks x", "name one of them"),
        ("--benefit frechet", "is of forks"),
        ("--forks missing", "holds no forks.json"),
        ("--data demo --validate", "--data: forks train on the data of the checkpoint"),
    ],
)
def test_bad_input(parent: Path, tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recommend.main(["--ckpt", str(parent), "--n-images", "16", "--out", str(tmp_path / "out"), *more.split()])
    assert not (tmp_path / "out").exists()


def test_what_is_said(parent: Path) -> None:
    """A control above a target: the table says so. Without forks the pick is not validated; with them the rank correlation is said."""
    from gsnr.probes.common.case import row_of
    from gsnr.probes.common.options import TargetOptions
    from gsnr.probes.common.subject import load
    from gsnr.train.forking.rows import parse

    subject = load(parent, data=None, vae_name=None, model=None, weights="ema")
    rows = [row_of(parse(word), subject, 1, {}) for word in ("repa@1", "repa@2", "shuffled:repa@1")]
    of = {row.label: (float(k), float(k), float(k)) for k, row in enumerate(rows)}
    values = recommendation.Values(name="gap", label="recoverability gap", of=of, sec=1.0)
    found = recommendation.Recommendation(case=Case(subject=subject, rows=rows, options=TargetOptions()), values=[values], benefits=[])
    words = recommendation.markdown(found)
    assert "**failed**: shuffled:repa@1" in words and found.pick(values) is rows[1]
    assert words.startswith("Recommended: repa@2, by recoverability gap (1 [1, 1]).\nValidated: not on this checkpoint")
    rows = [row_of(parse(word), subject, 1, {}) for word in ("repa@1", "repa@2", "uniform-deep@1", "uniform-deep@2")]
    values = recommendation.Values(name="gap", label="gap", of={row.label: (float(k), np.nan, np.nan) for k, row in enumerate(rows)}, sec=1.0)
    gains = {row.label: np.array([0.1 * k, 0.1 * k + 0.02]) for k, row in enumerate(rows)}
    benefit = recommendation.Benefit(metric="velocity_loss", by_seed=gains, about={"steps": 9})
    case = Case(subject=subject, rows=rows, options=TargetOptions())
    found = recommendation.Recommendation(case=case, values=[values], benefits=[benefit])
    (forks,) = recommendation.said_by_forks(found)
    assert forks.startswith("By the forks (held-out velocity loss, 4 targets): uniform-deep@2 brings most, 0.31 [") and "align nothing" in forks
    sure = recommendation.Benefit(metric="velocity_loss", by_seed={row: np.linspace(g[0], g[0] + 0.02, 5) for row, g in gains.items()}, about={})
    assert recommendation.said_by_forks(recommendation.Recommendation(case=case, values=[values], benefits=[sure]))[0].endswith("; take it.")
    said = recommendation.said_of_default(found)
    assert said[0] == "Recommended: uniform-deep@2, by gap (3)."
    assert said[1].startswith("Validated: on forks of 9 steps with 2 seeds its rank correlation with the benefit (held-out velocity loss) is +1.00")
    assert said[1].endswith("its pick's regret is 0 ± 0 over seeds.")


def test_a_block_that_writes_nothing_in_a_routed_model() -> None:
    """As with its last layers at zero."""
    torch.manual_seed(0)
    model = SiT(input_size=4, patch_size=2, hidden_size=8, depth=3, num_heads=2, num_classes=3, residual="dar", chunk=2)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    given = (torch.randn(4, 4, 4, 4), torch.rand(4), torch.arange(4) % 3)
    with torch.no_grad():
        found = gate_ablation.changes(model, model.blocks[1], *given)
        whole = model(*given).flatten(1)
        for part in ("attn.proj", "mlp.fc2"):
            for p in model.blocks[1].get_submodule(part).parameters():
                p.zero_()
        expected = (model(*given).flatten(1) - whole).norm(dim=1) / whole.norm(dim=1)
    torch.testing.assert_close(found, expected)
    assert (found > 0).all()
