"""`gsnr probe`: the tables it writes, what it compares, and how it meets bad input."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gsnr
from gsnr import table
from gsnr.probes.common import fit, summary
from gsnr.probes.common.candidates import candidates
from gsnr.probes.common.command import main
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.subject import Subject
from gsnr.train.data import cache
from gsnr.train.data.heldout import order, partners
from gsnr.train.data.rng import draw
from gsnr.train.demo.cache import demo_cache
from gsnr.train.runs import checkpoint
from tests.benchmarks import agreement
from tests.conftest import call
from tests.listing import choose_from
from tests.probes.subjects import subject_of
from tests.train.run_files import hash_again

OPTIONS = TargetOptions(bins=3, n_images=24, fit_samples=256)


def test_the_table(probed_run: Path) -> None:
    cells = table.read(probed_run / "probes" / "alignment.parquet")
    keys = set(zip(cells["target"], cells["control"], cells["projector"], strict=True))
    assert keys == {
        ("ahpa", "none", "fit"),
        *((target, control, "fit") for target in ("uniform_mid", "uniform_deep") for control in ("none", "shuffled")),
        *(("ahpa", control, "fit") for control in ("shuffled", "shuffled_class")),
        *(("ahpa", control, "ckpt") for control in ("none", "shuffled", "shuffled_class", "constant")),
    }
    assert set(cells["group"]) == {"all", "embedders", "block 1", "block 2", "attention", "MLP", "adaLN", "label", "projector"}
    assert len(cells) == 11 * 9 * 3
    assert set(cells["n"]) == {24} and set(cells["step"]) == {30} and set(cells["weights"]) == {"ema"}
    first = cells[cells["bin"] == 0].iloc[0]
    assert (first["t_low"], first["t_high"]) == (0.0, pytest.approx(1 / 3))
    assert first["logsnr_high"] == np.inf and first["logsnr_low"] == pytest.approx(2 * np.log(2))
    np.testing.assert_allclose(cells["gsnr_plugin"] - cells["gsnr"], 1 / 24, rtol=1e-6)
    whole = cells[cells["group"] == "all"].groupby(["target", "control", "projector", "bin"])["signal"].sum()
    for parts in (["embedders", "block 1", "block 2"], ["embedders", "attention", "MLP", "adaLN"]):
        both = cells[cells["group"].isin(parts)].groupby(["target", "control", "projector", "bin"])["signal"].sum()
        np.testing.assert_allclose(both, whole, rtol=1e-5, atol=1e-12)


def test_intervals_can_be_recomputed_from_the_samples(probed_run: Path) -> None:
    """One run is re-analysed without a GPU: q and r per image give U, V and the interval again."""
    cells = table.read(probed_run / "probes" / "alignment.parquet")
    samples = table.read(probed_run / "probes" / "alignment.samples.parquet")
    keys = ["target", "control", "projector", "group", "bin"]
    for key, rows in samples.groupby(keys):
        cell = cells[(cells[keys] == list(key)).all(axis=1)].iloc[0]
        again = table.estimate_again(cell, rows)
        assert again.signal == pytest.approx(cell["signal"], rel=1e-3, abs=1e-6 * cell["noise"])
        assert again.ci() == pytest.approx((cell["gsnr_low"], cell["gsnr_high"]), rel=1e-3, abs=1e-6)
        assert rows["loss"].mean() == pytest.approx(cell["loss"], rel=1e-6)
        assert list(rows["image_id"]) == list(order(256)[:24])


def test_targets_share_images_times_and_noise(probed_run: Path) -> None:
    samples = table.read(probed_run / "probes" / "alignment.samples.parquet")
    for _, rows in samples.groupby(["bin", "image_id"]):
        assert rows["t"].nunique() == 1
    u = samples[samples["group"] == "all"].assign(u=lambda s: s["t"] * 3 - s["bin"])
    assert u.groupby("image_id")["u"].agg(np.ptp).max() < 1e-5


def _constructive(g: np.ndarray, d: np.ndarray) -> float:
    """sign(I) (I^2 - X) / (U_d V_g), X the jackknife variance of I - (I / U_d) U_d (no more than sqrt(X) |I|), from whole gradients."""

    def products(g: np.ndarray, d: np.ndarray) -> tuple[float, float]:
        return tuple(float(x.sum() - np.trace(x)) / (len(g) * (len(g) - 1)) for x in (g @ d.T, d @ d.T))

    inner, signal = products(g, d)
    left = [products(np.delete(g, i, 0), np.delete(d, i, 0)) for i in range(len(g))]
    off = np.array([a - inner / signal * b for a, b in left])
    excess = (len(g) - 1) * off.var()
    return float(np.sign(inner) * (inner**2 - min(excess, excess**0.5 * abs(inner))) / (signal * g.var(axis=0, ddof=1).sum()))


@pytest.mark.parametrize("shuffled", [False, True])
def test_cells_against_a_naive_computation(probed_run: Path, shuffled: bool) -> None:
    """U and V of bin 1 from the files alone: one .backward() a sample, numpy for the rest. Shuffled: the target is that of the
    image's partner, and the projector is fitted here by `fit`, whose procedure has tests of its own."""
    loaded = checkpoint.load(probed_run)
    header, splits = cache.open_cache(demo_cache(256, 256, "adaptive"), ("G3", "G4"))
    images = order(256)[:24]
    rows = splits["heldout"].take(images, ("mean", "std", "label", "G3", "G4"))
    drawn = draw(0, "heldout", images, header.latent_shape)
    t = torch.from_numpy((1 / 3 + drawn.u / 3).astype(np.float32))
    x0 = torch.from_numpy((rows["mean"] + rows["std"] * drawn.posterior) * np.float32(header.scale))
    x_t = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * torch.from_numpy(drawn.noise)
    model, alignment = loaded.model, loaded.alignment
    if shuffled:
        rows |= splits["heldout"].take(partners(256, 0)[images], ("G3", "G4"))
        made = candidates(subject_of(probed_run), OPTIONS)
        fit.fit(subject_of(probed_run), OPTIONS, made, fit.means(subject_of(probed_run), 0, made))
        alignment = next(c for c in made if (c.control, c.projector) == ("shuffled", "fit")).alignment
    names = [n for n, _ in model.named_parameters() if n.startswith(("x_embedder", "t_embedder", "blocks.0.", "blocks.1."))]
    gradients, losses, denoising = [], [], []
    for i in range(24):
        model.zero_grad()
        with torch.no_grad():
            w = alignment.router(t[i : i + 1])
            parts = [
                w["beta"][0, j] * sum(w[p][0, k] * torch.from_numpy(rows[g][i, k]).float() for k in range(4))
                for j, (p, g) in enumerate((("mid", "G3"), ("deep", "G4")))
            ]
            y = torch.cat(parts).flatten(1).T
        hidden = {}
        handle = model.blocks[1].register_forward_hook(lambda _m, _i, out, hidden=hidden: hidden.update(h=out))
        model(x_t[i : i + 1], t[i : i + 1], torch.from_numpy(rows["label"][i : i + 1]))
        handle.remove()
        grid = hidden["h"][0].T.reshape(1, -1, 8, 8)
        z = F.conv2d(grid, *alignment.projector.conv[0].parameters(), padding=1)[0].flatten(1).T
        loss = 1 - ((z * y).sum(1) / z.norm(dim=1) / y.norm(dim=1)).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        by_name = dict(model.named_parameters())
        gradients.append(np.concatenate([by_name[n].grad.double().numpy().ravel() for n in names]))
        model.zero_grad()
        velocity = model(x_t[i : i + 1], t[i : i + 1], torch.from_numpy(rows["label"][i : i + 1]))
        (velocity - (torch.from_numpy(drawn.noise) - x0)[i : i + 1]).square().mean().backward()
        denoising.append(np.concatenate([by_name[n].grad.double().numpy().ravel() for n in names]))
    g, d = np.stack(gradients), np.stack(denoising)
    gram = g @ g.T
    cells = table.read(probed_run / "probes" / "alignment.parquet")
    which = (cells["control"] == ("shuffled" if shuffled else "none")) & (cells["projector"] == ("fit" if shuffled else "ckpt"))
    which &= cells["target"] == "ahpa"
    cell = cells[which & (cells["group"] == "all") & (cells["bin"] == 1)].iloc[0]
    assert cell["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert cell["signal"] == pytest.approx((gram.sum() - np.trace(gram)) / (24 * 23), rel=1e-3)
    pairs = [x.sum() - np.trace(x) for x in (g @ d.T, gram, d @ d.T)]
    if pairs[1] > 0 and pairs[2] > 0:
        cosine = pairs[0] / np.sqrt(pairs[1] * pairs[2])
        assert cell["cos_denoise"] == pytest.approx(cosine, rel=1e-2, abs=1e-3)
        assert cell["gsnr_constructive"] == pytest.approx(_constructive(g, d), rel=3e-2, abs=1e-4)
    else:
        assert np.isnan(cell["cos_denoise"])
    assert cell["noise"] == pytest.approx(g.var(axis=0, ddof=1).sum(), rel=1e-3)


def test_a_uniform_run_is_probed_with_its_own_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from gsnr.figures.command import main as draw
    from gsnr.train.command import main as train

    run = tmp_path / "run"
    words = ("--preset", "smoke", "--alignment", "uniform", "--alignment.source", "mid", "--alignment.split", "2/6", "--steps", 2)
    assert call(train, *words, "--out", run) == 0
    made = candidates(subject_of(run), OPTIONS)
    assert [(c.name, c.alignment.mid_layers) for c in made] == [
        *((f"uniform_mid{marks}", 2) for marks in ("", " [shuffled]", " [shuffled_class]")),
        *((f"uniform_deep{marks}", 2) for marks in ("", " [shuffled]")),
        *((f"uniform_mid {marks}", 2) for marks in ("[ckpt]", "[shuffled] [ckpt]", "[shuffled_class] [ckpt]", "[constant] [ckpt]")),
    ]
    assert call(main, "--ckpt", run, "--bins", 1, "--n-images", 4, "--fit-samples", 128, "--train-images", 32) == 0
    assert "skipping router" in capsys.readouterr().out
    assert call(draw, "--run", run, "--figure", "fig2_gsnr,fig_easy") == 0


def test_router_table(probed_run: Path) -> None:
    metrics = table.read(probed_run / "probes" / "router.parquet")
    now = metrics[metrics["target"] == "router"]
    np.testing.assert_allclose(now[now["metric"] == "beta"].groupby("t_low")["value"].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(now[now["metric"] == "alpha_mid"].groupby("t_low")["value"].sum(), 1, rtol=1e-5)
    assert now[now["metric"] == "alpha_deep"]["group"].iloc[0] == "12:down_blocks.3.resnets.1"
    router = checkpoint.load(probed_run).alignment.router
    with torch.no_grad():
        expected = router(torch.tensor([0.5]))["beta"][0, 1].item()
    at_half = now[(now["metric"] == "beta") & (now["group"] == "deep") & (now["t_low"] == 0.5)]["value"].item()
    assert at_half == pytest.approx(expected, abs=1e-6)
    log = metrics[metrics["target"] == "router_log"]
    assert sorted(log["step"].unique()) == [0, 5, 10, 15, 20, 25, 30]


def test_measured_twice_is_measured_once(probed_run: Path, capsys: pytest.CaptureFixture) -> None:
    paths = sorted((probed_run / "probes").iterdir())
    before = [p.stat().st_mtime_ns for p in paths]
    assert call(main, "--ckpt", probed_run, "--bins", "3", "--n-images", "24", "--fit-samples", "256", "--train-images", "32") == 0
    assert "there already" in capsys.readouterr().out
    assert before == [p.stat().st_mtime_ns for p in paths]
    with pytest.raises(ValueError, match=r"bins was 3, now 2.*--overwrite"):
        call(main, "--ckpt", probed_run, "--bins", "2", "--n-images", "24", "--fit-samples", "256", "--train-images", "32")
    assert before == [p.stat().st_mtime_ns for p in paths]


def test_draws_and_saved_sums(probed_run: Path, tmp_path: Path) -> None:
    """--draws 2: n still counts images, each image's t is a mean of two, the noise is split; --save-sums: files that merge into the same U and V."""
    words = ("--ckpt", probed_run, "--bins", "2", "--n-images", "12", "--fit-samples", "128", "--probe", "alignment", "--draws", "2", "--save-sums")
    assert call(main, *words, "--targets", "own", "--controls", "shuffled", "--out", tmp_path) == 0
    cells, samples = (table.read(tmp_path / f"alignment.{kind}parquet") for kind in ("", "samples."))
    assert set(cells["n"]) == {12} and set(cells["draws"]) == {2}
    assert len(samples) == 12 * len(cells)
    metrics = table.read(tmp_path / "alignment.metrics.parquet")
    variance = metrics[metrics["metric"].str.startswith("noise_")]
    assert set(variance["metric"]) == {"noise_between", "noise_within"}
    keys = ["target", "control", "projector", "group", "bin"]
    joined = cells.merge(variance.pivot(index=keys, columns="metric", values="value").reset_index(), on=keys)
    np.testing.assert_allclose(joined["noise_between"] + joined["noise_within"] / 2, joined["noise"], rtol=1e-5, atol=1e-12)
    saved = sorted((tmp_path / "alignment.sums").iterdir())
    assert len(saved) == 4 * 2
    cell = cells[(cells["projector"] == "ckpt") & (cells["control"] == "none") & (cells["group"] == "all") & (cells["bin"] == 1)].iloc[0]
    again = gsnr.Result.load(tmp_path / "alignment.sums" / "ahpa-none-ckpt-bin1.safetensors")["backbone"]
    assert (again.n, again.signal) == (12, pytest.approx(cell["signal"], rel=1e-6))
    with pytest.raises(ValueError, match="--draws 0: must be at least 1"):
        call(main, "--ckpt", probed_run, "--draws", "0")


def test_sums_that_would_not_be_saved(probed_run: Path, tmp_path: Path) -> None:
    """Of a table that is there, of pieces that were measured without them, and of a probe that has none; those of before go with their table."""
    words = ("--ckpt", probed_run, "--bins", "1", "--n-images", "4", "--fit-samples", "64", "--probe", "alignment", "--controls", "none")
    words += ("--targets", "own", "--projector", "ckpt", "--out", tmp_path)
    assert call(main, *words) == 0
    with pytest.raises(ValueError, match=r"--save-sums: .*alignment\.parquet was measured without; add --overwrite"):
        call(main, *words, "--save-sums")
    for again, saved in ((("--save-sums",), True), ((), False)):
        assert call(main, *words, "--overwrite", *again) == 0
        assert (tmp_path / "alignment.sums").is_dir() == saved
    with pytest.raises(ValueError, match="--save-sums: denoising writes no gradient sums; alignment, vae_swap do"):
        call(main, "--ckpt", probed_run, "--probe", "denoising", "--save-sums", "--out", tmp_path)


def test_denoising_splits_its_noise_too(probed_run: Path, tmp_path: Path) -> None:
    assert call(main, "--ckpt", probed_run, "--bins", "1", "--n-images", "8", "--probe", "denoising", "--draws", "2", "--out", tmp_path) == 0
    cells, variance = (table.read(tmp_path / f"denoising{kind}.parquet") for kind in ("", ".metrics"))
    both = variance.pivot(index="group", columns="metric", values="value").loc[cells["group"]]
    np.testing.assert_allclose(both["noise_between"] + both["noise_within"] / 2, cells["noise"], rtol=1e-5, atol=1e-12)


def test_easiness_of_every_candidate(probed_run: Path) -> None:
    """What the cosine loss says the projector reaches; a constant control is easy, whatever its projector."""
    cells, metrics = (table.read(probed_run / "probes" / f"alignment{kind}.parquet") for kind in ("", ".metrics"))
    keys = ["target", "control", "projector", "bin"]
    reached = metrics[metrics["metric"] == "projector_cosine"].set_index(keys)["value"]
    loss = cells[cells["group"] == "all"].set_index(keys)["loss"]
    np.testing.assert_allclose(reached, 1 - loss.loc[reached.index], atol=1e-5)
    constant = metrics[(metrics["metric"] == "constant_cosine") & (metrics["control"] == "constant")]
    assert set(constant["projector"]) == {"ckpt"}
    np.testing.assert_allclose(constant["value"], 1, atol=1e-6)
    assert "AHPA, constant, own projector at all t" in summary.easy(metrics)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--probe", "alignment,alignment"), "--probe 'alignment,alignment': names 'alignment' twice"),
        (("--targets", "own,own"), "--targets 'own,own': names 'own' twice"),
        (("--projector", "fit,fit"), "--projector 'fit,fit': names 'fit' twice"),
        (("--projector", ""), "--projector '': names nothing"),
        (("--probe", ""), "--probe '': names nothing"),
        (("--probe", "router,"), "--probe 'router,': names nothing"),
    ],
)
def test_names_that_are_empty_or_given_twice(probed_run: Path, tmp_path: Path, words: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(main, "--ckpt", probed_run, *words, "--out", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_disjoint_images(probed_run: Path, tmp_path: Path) -> None:
    """--first-image: images 24 to 31 of the order are those that n = 32 has as well, and 0 to 23 are not among them."""
    words = ("--ckpt", probed_run, "--bins", "1", "--fit-samples", "128", "--probe", "alignment,controls,denoising,vae_pca")
    words += ("--targets", "own", "--controls", "shuffled")
    assert call(main, *words, "--n-images", "32", "--out", tmp_path / "all") == 0
    assert call(main, *words, "--n-images", "8", "--first-image", "24", "--out", tmp_path / "some") == 0
    for probe in ("alignment", "denoising"):
        whole, some = (table.read(tmp_path / name / f"{probe}.samples.parquet") for name in ("all", "some"))
        assert sorted(some["image_id"].unique()) == sorted(order(256)[24:32])
        keys = ["target", "control", "projector", "group", "image_id"]
        both = some.merge(whole, on=keys, suffixes=("", "_whole"))
        assert len(both) == len(some)
        np.testing.assert_allclose(both["q"], both["q_whole"], rtol=1e-4, atol=1e-12)
    with pytest.raises(ValueError, match="--n-images 32 after --first-image 240: the held-out split of 'demo' has 256"):
        call(main, *words, "--n-images", "32", "--first-image", "240", "--out", tmp_path / "none")


def test_probes_of_disjoint_images_agree_as_often_as_their_intervals_say(smoke_run: Path) -> None:
    """Share of cells whose difference is below 1.96 standard errors; 216 cells of 8 probes, which depend on one another within a probe."""
    z = agreement.differences(smoke_run, images=32, bins=2, repetitions=1)["z"]
    assert len(z) == 4 * 3 * 2 * 9
    assert 0.90 < (z.abs() < 1.96).mean() < 0.99 and z.std() > 0.8


def test_a_dry_run_measures_nothing_and_estimates(probed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--ckpt", probed_run, "--bins", "50", "--n-images", "24", "--fit-samples", "4096", "--out", tmp_path / "t", "--dry-run")
    assert call(main, *words, "--probe", "alignment,router", "--targets", "own", "--controls", "none", "--projector", "fit") == 0
    printed = capsys.readouterr().out
    assert "50 bins x 24 held-out images x 1 targets" in printed and "alignment.parquet" in printed
    assert "linear projectors solved from 4096 train samples" in printed and printed.count("GiB of memory") == 3
    assert "in all about" in printed and not (tmp_path / "t").exists()


def test_a_forecast_tells_the_fit_from_the_rest() -> None:
    """With a clock that knows what each costs: 0.02 s a sample of the fit, 0.1 s for each image and bin that the piece has."""
    from types import SimpleNamespace

    from gsnr.probes.common.forecast import forecast

    clock = [0.0]

    def run(subject: Subject, options: TargetOptions, resume: object, sums: None) -> tuple[dict, dict]:
        clock[0] += 0.02 * options.fit_samples + 0.1 * options.bins * options.n_images
        return {}, {}

    options = dataclasses.replace(OPTIONS, bins=7, n_images=64, fit_samples=5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gsnr.probes.common.forecast.time", SimpleNamespace(perf_counter=lambda: clock[0]))
        probe = SimpleNamespace(run=run, SCALES=("bins", "n_images", "draws", "fit_samples"))
        assert forecast(probe, None, options).seconds == pytest.approx(0.02 * 5000 + 0.1 * 7 * 64)
        once = SimpleNamespace(run=run, SCALES=())
        assert forecast(once, None, options).seconds == pytest.approx(0.02 * 64 + 0.1 * 32)


def test_engines_give_the_same_table(probed_run: Path, tmp_path: Path) -> None:
    """In every bin: the target through a fitted projector and through its own, and the constant control, which has no features of images."""
    words = ("--ckpt", probed_run, "--bins", "3", "--n-images", "24", "--fit-samples", "256", "--probe", "alignment", "--out", tmp_path)
    assert call(main, *words, "--targets", "own", "--controls", "constant", "--engine", "loop") == 0
    ghost, b = (table.read(p / "alignment.parquet") for p in (probed_run / "probes", tmp_path))
    keys = ["target", "control", "projector", "group", "bin"]
    a = b[keys].merge(ghost, on=keys)
    assert len(a) == len(b) == 3 * 9 * 3
    assert set(a["engine"]) == {"ghost"} and set(b["engine"]) == {"loop"}
    np.testing.assert_allclose(a["cos_denoise"], b["cos_denoise"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(a["noise"], b["noise"], rtol=1e-3)
    np.testing.assert_allclose(a["signal"], b["signal"], rtol=1e-3, atol=1e-4 * a["noise"].max())


def test_a_checkpoint_without_a_router(plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--ckpt", plain_run, "--bins", "1", "--n-images", "8", "--fit-samples", "128", "--train-images", "32", "--out", tmp_path)
    assert call(main, *words) == 0
    assert "skipping router" in capsys.readouterr().out
    cells = table.read(tmp_path / "alignment.parquet")
    assert set(cells["target"]) == {"uniform_mid", "uniform_deep"}
    assert set(cells["control"]) == {"none", "shuffled", "shuffled_class"}
    with pytest.raises(ValueError, match="learns no weights over t alone"):
        call(main, "--ckpt", plain_run, "--probe", "router", "--out", tmp_path)


def test_list(capsys: pytest.CaptureFixture) -> None:
    assert call(main, "--list") == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert listed >= {"alignment", "controls", "denoising", "readability", "representation", "router", "vae_pca", "vae_swap"}


@pytest.fixture
def copied_run(smoke_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_run, tmp_path / "run")
    return tmp_path / "run"


def test_bad_input_is_named(smoke_run: Path, copied_run: Path, tmp_path: Path) -> None:
    def fails(match: str, *words: str | Path) -> None:
        with pytest.raises(ValueError, match=match):
            call(main, *words, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    fails("no such run or checkpoint", "--ckpt", tmp_path / "nope")
    fails("neither a run folder", "--ckpt", tmp_path)
    fails(
        choose_from("alignment, controls, denoising, readability, representation, router, vae_pca, vae_swap"),
        "--ckpt",
        smoke_run,
        "--probe",
        "alignment,nope",
    )
    fails("choose from auto, loop, vmap", "--ckpt", smoke_run, "--engine", "nope")
    fails("--bins 0: must be at least 1", "--ckpt", smoke_run, "--bins", "0")
    fails("--n-images 257: the held-out split of 'demo' has 256", "--ckpt", smoke_run, "--n-images", "257")
    fails("--n-images 2: must be at least 3", "--ckpt", smoke_run, "--n-images", "2")
    fails("choose from ema, raw", "--ckpt", smoke_run, "--weights", "nope")
    fails("not a gsnr cache", "--ckpt", smoke_run, "--data", tmp_path)
    fails("only a raw .pt file needs it", "--ckpt", smoke_run, "--model", "SiT-B/2")
    fails("cannot be loaded", "--ckpt", smoke_run, "--vae", tmp_path / "novae")
    (tmp_path / "x.pt").write_bytes(b"PK")
    fails("truncated, or not a checkpoint of torch.save", "--ckpt", tmp_path / "x.pt")

    folder = copied_run / "checkpoints" / "0000030"
    weights = folder / "ema" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    fails(r"ema.diffusion_pytorch_model.safetensors: damaged or truncated", "--ckpt", copied_run)
    weights.unlink()
    fails("safetensors: missing", "--ckpt", copied_run)
    weights.write_bytes(whole)
    state = (folder / "state.json").read_text()
    sha = checkpoint.load(copied_run).header.vae_sha
    (folder / "state.json").write_text(state.replace(sha, "0" * 64))
    hash_again(folder)
    fails("trained with VAE 'demo'", "--ckpt", copied_run)
    (folder / "state.json").write_text("[]")
    fails("state.json: damaged", "--ckpt", copied_run)
    (folder / "state.json").write_text(state[:100])
    fails("state.json: damaged", "--ckpt", copied_run)
    (copied_run / "LAST").write_text("0000099\n")
    fails("LAST: points at '0000099'", "--ckpt", copied_run)
    (copied_run / "LAST").write_text("")
    fails("LAST: points at ''", "--ckpt", copied_run)
