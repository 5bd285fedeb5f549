"""`gsnr evaluate --samples`: what it measures, keeps, says and refuses. In features of the demo's teacher, or of a small network in Inception's
place, so that nothing has to be downloaded; where the published files are, the published numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gsnr import plugins
from gsnr.train import evaluate
from gsnr.train.evaluation.compare import Asked, compare
from gsnr.train.extractors import inception
from gsnr.train.metrics import Moments
from gsnr.train.metrics._frechet import Distance
from tests.conftest import call

SIDE = 32
ABOUT = {"sampler": "heun", "steps": 250, "seed": 0}


def images(n: int, seed: int, side: int = SIDE) -> np.ndarray:
    """Smooth blobs, so that features differ."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 4, 4, 3), np.uint8)
    return np.kron(small, np.ones((1, side // 4, side // 4, 1), np.uint8))


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """samples.npz (40) with `about`, reference.npz (30), and the same reference as a folder of PNGs."""
    monkeypatch.setenv("GSNR_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "samples.npz", arr_0=images(40, 0), labels=np.arange(40), about=json.dumps(ABOUT))
    np.savez_compressed(tmp_path / "reference.npz", arr_0=images(30, 1))
    for i, image in enumerate(images(30, 1)):
        place = tmp_path / "reference" / f"class{i // 10}" / f"{i:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return tmp_path


def asked(sets: Path, **options: Any) -> dict[str, Any]:
    given = {"samples": sets / "samples.npz", "reference": sets / "reference.npz", "features": "demo", "batch": 16}
    return compare(Asked(**given | options))


def of_demo(images_NHWC: np.ndarray) -> np.ndarray:
    return plugins.find("extractors", "demo").Extractor(None)(images_NHWC)["pool"]


def test_numbers_and_what_they_depend_on(sets: Path) -> None:
    """The metrics of the extractor's features, from a file read in parts, compressed or not, and from a folder; said with all they depend on."""
    found = asked(sets)
    x, y = of_demo(images(40, 0)), of_demo(images(30, 1))
    expected = {name: plugins.find("metrics", name).measure(x, y)[name] for name in ("precision", "recall", "density", "coverage")}
    expected["fid"] = Distance(Moments.of(y))(Moments.of(x))
    assert {key: found["metrics"][key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert list(found["metrics"]) == ["fid", "fid_se", "fid_infinity", "precision", "recall", "density", "coverage"]
    assert found["metrics"]["fid_se"] > 0 and found["metrics"]["fid_infinity"] is None, "too few for the limit"
    assert found["samples"] == {"path": str(sets / "samples.npz"), "n": 40, "resolution": [SIDE, SIDE], "about": ABOUT}
    assert found["reference"]["n"] == 30 and len(found["reference"]["sha256"]) == 64 and found["reference"]["moments_of_file"] == []
    assert (found["features"], found["mode"]) == ("demo", "native") and len(found["weights"]) == 64
    assert found["notes"] == ["40 samples: FID and its kin are biased upwards below 10000; compare equal numbers only"]
    again = asked(sets, reference=sets / "reference", batch=7)
    assert {key: again["metrics"][key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert again["reference"]["sha256"] != found["reference"]["sha256"]


def test_the_command_prints_and_writes_the_same(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--samples", sets / "samples.npz", "--reference", sets / "reference", "--features", "demo", "--metrics", "kid,mind")
    assert call(evaluate.main, *words, "--out", sets / "numbers.json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((sets / "numbers.json").read_text())
    assert list(json.loads(said.out)["metrics"]) == ["kid", "kid_std", "mind"]
    assert "note: 40 samples" in said.err


def test_a_reference_is_kept(sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its network runs once for what was asked, again for another form, other contents or a damaged file; the samples' always."""
    ran: list[int] = []
    cls = plugins.find("extractors", "demo").Extractor
    forward = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, x: ran.append(len(x)) or forward(self, x))

    def images_run(**options: Any) -> int:
        ran.clear()
        asked(sets, **options)
        return sum(ran)

    assert images_run(metrics=("fid",)) == 70
    assert images_run(metrics=("fid",)) == 40
    assert images_run(metrics=("recall",)) == 70
    assert images_run() == 40
    kept = sorted((sets / "cache" / "references").iterdir())
    assert [p.name.rpartition("-")[0] for p in kept] == ["demo-native-pool-moments", "demo-native-pool-rows"]
    before = asked(sets)
    for path, damage in ((kept[0], lambda data: data[: len(data) // 2]), (kept[1], lambda data: data[:900] + bytes([data[900] ^ 1]) + data[901:])):
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        assert images_run() == 70 and f"note: {path}: damaged" in capsys.readouterr().err
        assert len(path.read_bytes()) == len(whole)
    assert asked(sets) == before
    np.savez(sets / "reference.npz", arr_0=images(30, 2))
    assert images_run() == 70


class Small(nn.Module):
    """In Inception's place: three kinds of features of an image of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(48, 15)

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        y = self.all(nn.functional.adaptive_avg_pool2d(x_B3HW, 4).flatten(1))
        return {"pool": y[:, :6], "spatial": y[:, 6:11], "probabilities": y[:, 11:].softmax(1)}


@pytest.fixture
def small(sets: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    torch.manual_seed(0)
    made = Small()
    torch.save(made.state_dict(), sets / "weights.pth")
    monkeypatch.setattr(inception, "Inception", Small)
    monkeypatch.setattr(inception, "SHA", "")
    monkeypatch.setenv(inception.ENVIRONMENT, str(sets / "weights.pth"))
    return made


@pytest.mark.usefixtures("small")
def test_moments_of_a_reference_are_used_in_the_way_that_made_them(sets: Path) -> None:
    rng = np.random.default_rng(0)
    own = {name: rng.normal(size=(99, width)) for name, width in (("", 6), ("_s", 5))}
    moments = {f"mu{k}": x.mean(0) for k, x in own.items()} | {f"sigma{k}": np.cov(x.T) for k, x in own.items()}
    np.savez(sets / "adm.npz", arr_0=images(30, 1), **moments)
    adm = asked(sets, features="inception", reference=sets / "adm.npz")
    extractor = inception.Extractor(None)
    x, y = extractor(images(40, 0)), extractor(images(30, 1))
    for name, kind, key in (("fid", "pool", ""), ("sfid", "spatial", "_s")):
        assert adm["metrics"][name] == pytest.approx(Distance(Moments.of(own[key]))(Moments.of(x[kind])), rel=1e-5)
    assert adm["metrics"]["recall"] == pytest.approx(plugins.find("metrics", "recall").measure(x["pool"], y["pool"])["recall"])
    assert adm["metrics"]["is"] == pytest.approx(plugins.find("metrics", "is").measure(x["probabilities"], None)["is"], rel=1e-5)
    assert adm["reference"]["moments_of_file"] == ["pool", "spatial"]
    other = asked(sets, features="inception", reference=sets / "adm.npz", mode="clean-fid", metrics=("fid",))
    extracted = asked(sets, features="inception", mode="clean-fid", metrics=("fid",))
    assert other["metrics"] == extracted["metrics"] and other["reference"]["moments_of_file"] == []
    assert asked(sets, features="inception", reference=None, metrics=("is",))["reference"] is None
    np.savez(sets / "alone.npz", **moments)
    assert asked(sets, features="inception", reference=sets / "alone.npz", metrics=("fid", "sfid"))["metrics"]["fid"] == adm["metrics"]["fid"]
    with pytest.raises(ValueError, match=r"alone.npz: holds moments and no images .arr_0., which --metrics recall needs here"):
        asked(sets, features="inception", reference=sets / "alone.npz", metrics=("fid", "recall"))
    with pytest.raises(ValueError, match=r"alone.npz: holds moments and no images .arr_0., which --metrics fid needs here"):
        asked(sets, features="inception", reference=sets / "alone.npz", metrics=("fid",), mode="pytorch-fid")
    np.savez(sets / "pool.npz", **{key: moments[key] for key in ("mu", "sigma")})  # as pytorch-fid writes them
    of_pool = asked(sets, features="inception", reference=sets / "pool.npz", metrics=("fid",), mode="pytorch-fid")
    x = inception.Extractor(None, "pytorch-fid")(images(40, 0))
    assert of_pool["metrics"]["fid"] == pytest.approx(Distance(Moments.of(own[""]))(Moments.of(x["pool"])), rel=1e-5)
    with pytest.raises(ValueError, match=r"pool.npz: holds moments and no images"):
        asked(sets, features="inception", reference=sets / "pool.npz", metrics=("fid",), mode="clean-fid")
    np.savez(sets / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    with pytest.raises(ValueError, match=r"wide.npz: its pool moments have 9 features, not 6"):
        asked(sets, features="inception", reference=sets / "wide.npz", metrics=("fid",))


def broken(sets: Path) -> None:
    good = images(4, 0)
    arrays = {
        "nothing": {"other": good},
        "floats": {"arr_0": good / 255.0},
        "grey": {"arr_0": good[..., 0]},
        "planes": {"arr_0": good.transpose(0, 3, 1, 2)},
        "one": {"arr_0": good[:1]},
        "large": {"arr_0": images(4, 0, 64)},
        "objects": {"arr_0": np.array([{}, 1], dtype=object)},
        "moments": {"mu": np.zeros(3), "sigma": np.eye(2)},
    }
    for name, content in arrays.items():
        np.savez(sets / f"{name}.npz", **content)
    whole = (sets / "samples.npz").read_bytes()
    (sets / "cut.npz").write_bytes(whole[:5000])
    (sets / "flipped.npz").write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    (sets / "empty").mkdir()
    (sets / "mixed").mkdir()
    for side in (8, 16):
        Image.fromarray(images(1, 0, side)[0]).save(sets / "mixed" / f"{side:02}.png")
    (sets / "torn").mkdir()
    for name in ("a.png", "b.png"):
        (sets / "torn" / name).write_bytes(b"no picture")


REFUSED = {
    "--samples DIR/nothing.npz": r"--samples .*nothing.npz: holds other, and no arr_0: uint8 images \(N,H,W,3\)",
    "--samples DIR/floats.npz": r"arr_0 is float64 \(4, 32, 32, 3\), not uint8 \(N,H,W,3\)",
    "--samples DIR/grey.npz": r"arr_0 is uint8 \(4, 32, 32\), not uint8 \(N,H,W,3\)",
    "--samples DIR/planes.npz": r"arr_0 is uint8 \(4, 3, 32, 32\), not uint8",
    "--samples DIR/one.npz": r"arr_0 holds 1 image; at least 2 are needed",
    "--samples DIR/objects.npz": r"arr_0 is object \(2,\), not uint8",
    "--samples DIR/large.npz": r"large.npz are 64 x 64 and --reference .*reference.npz 32 x 32; one resolution is needed",
    "--samples DIR/cut.npz": r"cut.npz: no whole .npz \(File is not a zip file\)",
    "--samples DIR/flipped.npz": r"flipped.npz: arr_0 is damaged \(Bad CRC-32",
    "--samples DIR/absent.npz": r"--samples .*absent.npz: no such file or folder",
    "--samples DIR/torn/a.png": r"a.png: no .npz file and no folder; one of images is needed",
    "--samples DIR/empty": r"--samples .*empty: 0 pictures",
    "--samples DIR/mixed": r"mixed/16.png: 16 x 16, and 08.png is 8 x 8; one size is needed",
    "--samples DIR/torn": r"torn/a.png: cannot be read as a picture",
    "--reference DIR/moments.npz": r"mu \(3,\) and sigma \(2, 2\) are no mean",
    "--features demos": r"extractor 'demos' does not exist; choose from attributes, clip, .* \(did you mean demo\?\)",
    "--metrics fids": r"metric 'fids' does not exist; choose from .* \(did you mean fid\?\)",
    "--metrics fid,fid": r"--metrics 'fid,fid': names 'fid' twice",
    "--metrics sfid": r"--metrics sfid: takes spatial features; demo gives pool",
    "--metrics is": r"--metrics is: takes probabilities features; demo gives pool",
    "--metrics fdd": r"--metrics fdd: is of features dinov2, not demo",
    "--mode adm": r"--mode of features demo: 'adm' does not exist; choose from native",
    "--frechet 64": r"--frechet: goes with --ckpt, not with --samples",
    "--ckpt DIR": r"--ckpt, --samples: name only one",
    "--out DIR/numbers.txt": r"--out .*numbers.txt: name a file that ends in .json",
    "--batch 0": r"--batch 0: must be at least 1",
}


def test_bad_input_is_one_line_and_nothing_is_written(sets: Path) -> None:
    broken(sets)
    for words, said in REFUSED.items():
        given = {"--samples": str(sets / "samples.npz"), "--reference": str(sets / "reference.npz"), "--features": "demo"}
        flag, value = words.replace("DIR", str(sets)).split()
        given[flag] = value
        if "mixed" in value or "torn" in value:
            given["--reference"] = value
        with pytest.raises(ValueError, match=said) as error:
            call(evaluate.main, *(word for pair in given.items() for word in pair), *(() if flag == "--out" else ("--out", sets / "numbers.json")))
        assert "\n" not in str(error.value)
    assert not (sets / "numbers.json").exists()
    with pytest.raises(ValueError, match="--metrics fid: compares with a --reference"):
        call(evaluate.main, "--samples", sets / "samples.npz", "--features", "demo", "--metrics", "fid")
    with pytest.raises(ValueError, match="--metrics: with --ckpt they are of the samples of --frechet N"):
        call(evaluate.main, "--ckpt", sets, "--metrics", "recall")
    with pytest.raises(ValueError, match="--reference: goes with --samples, not with --ckpt"):
        call(evaluate.main, "--ckpt", sets, "--reference", sets / "reference.npz")


PUBLISHED = {"fid": (3.94256, 0.002), "sfid": (6.14043, 0.002), "is": (215.837, 0.2), "precision": (0.8265, 0.003), "recall": (0.5309, 0.003)}


@pytest.mark.skipif(
    not ({"INCEPTION_WEIGHTS", "ADM_SAMPLES"} <= set(os.environ)),
    reason="needs INCEPTION_WEIGHTS=FILE and ADM_SAMPLES=SAMPLES.npz:REFERENCE.npz: admnet_guided_upsampled_imagenet256, VIRTUAL_imagenet256_labeled",
)
def test_published_numbers_of_adm() -> None:
    samples, reference = os.environ["ADM_SAMPLES"].split(os.pathsep)
    found = compare(Asked(samples=Path(samples), reference=Path(reference)))["metrics"]
    for name, (value, tolerance) in PUBLISHED.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name
