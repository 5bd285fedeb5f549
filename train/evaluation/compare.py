"""Metrics of a set of samples against a reference, and all that the numbers depend on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gsnr
from gsnr import plugins
from gsnr.train.evaluation import captions
from gsnr.train.evaluation.features import Form, extract, of_reference
from gsnr.train.evaluation.images import ImageSet, check_alike, open_images
from gsnr.train.extractors import FeatureExtractor
from gsnr.train.metrics import Moments, Rows, Values

DIGITS = 6  # significant ones that are printed
FEW = 10_000
FEWER = f"{{n}} samples: FID and its kin are biased upwards below {FEW}; compare equal numbers only"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `gsnr evaluate --samples` was asked. metrics, mode, weights_file: None for the extractor's own. captions: None for the samples' own."""

    samples: Path
    reference: Path | None
    features: str = "inception"
    metrics: tuple[str, ...] | None = None
    mode: str | None = None
    weights_file: str | None = None
    batch: int = 64
    captions: Path | None = None


def found(names: Iterable[str]) -> dict[str, ModuleType]:
    """The metrics of these names. Raises ValueError for one that there is not."""
    return {name: plugins.find("metrics", name) for name in names}


def chosen(asked: Asked, extractor: type[FeatureExtractor]) -> dict[str, ModuleType]:
    """Raises ValueError for a metric that the features cannot give."""
    metrics = found(asked.metrics or extractor.metrics)
    for name, metric in metrics.items():
        if metric.FEATURES and asked.features not in metric.FEATURES:
            raise ValueError(f"--metrics {name}: is of features {', '.join(metric.FEATURES)}, not {asked.features}; name one with --features")
        if metric.KIND not in extractor.gives:
            raise ValueError(f"--metrics {name}: takes {metric.KIND} features; {asked.features} gives {', '.join(extractor.gives)}")
    return metrics


def rounded(values: Values) -> Values:
    return {key: None if value is None else float(f"{value:.{DIGITS}g}") for key, value in values.items()}


def compare(asked: Asked) -> dict[str, Any]:
    """What the command prints. Raises ValueError for anything missing, damaged or mismatched."""
    cls = plugins.find("extractors", asked.features).Extractor
    mode = cls.mode_of(asked.mode)
    metrics = chosen(asked, cls)
    comparing = [name for name, metric in metrics.items() if metric.COMPARES]
    if comparing and asked.reference is None:
        raise ValueError(f"--metrics {comparing[0]}: compares with a --reference; name an .npz or a folder of images")
    samples = open_images(asked.samples, "--samples")
    said = _captions(asked, samples, cls.reads_captions)
    reference = None if asked.reference is None else open_images(asked.reference, "--reference", moments=True)
    stored: dict[Form, Moments] = {}
    if reference is not None:
        check_alike(samples, reference)
        stored = _stored(reference, asked.features, mode)
        _check_images(reference, {name: metrics[name] for name in comparing}, stored)
    extractor = cls(asked.weights_file, mode)
    _check_widths(stored, extractor, samples, asked)
    needed = list(dict.fromkeys((metric.KIND, metric.NEEDS) for name, metric in metrics.items() if name in comparing))
    against: dict[Form, Moments | Rows] = dict(stored)
    if reference is not None:
        against |= of_reference(reference, extractor, asked.features, [form for form in needed if form not in stored], asked.batch)
    forms = dict.fromkeys((metric.KIND, metric.NEEDS) for metric in metrics.values())
    of = extract(samples, extractor, forms, asked.batch, "samples", captions=said)
    values: Values = {}
    for name, metric in metrics.items():
        form = (metric.KIND, metric.NEEDS)
        values |= metric.measure(of[form], against[form] if name in comparing else None)
    return {
        "metrics": rounded(values),
        "features": asked.features,
        "mode": mode,
        "weights": extractor.sha,
        "samples": {"path": str(asked.samples), "n": samples.n, "resolution": list(samples.size), "about": samples.about},
        "reference": None if reference is None else _said(reference, [form[0] for form in stored if form in needed]),
        "gsnr": gsnr.__version__,
        "notes": [FEWER.format(n=samples.n)] if samples.n < FEW and not said else [],
    }


def _captions(asked: Asked, samples: ImageSet, read: bool) -> list[str]:
    """One an image, of an extractor that reads them. Raises ValueError for --captions that nothing reads."""
    if read:
        return captions.of(samples, asked.captions)
    if asked.captions is not None:
        reading = [name for name in plugins.names("extractors") if plugins.find("extractors", name).Extractor.reads_captions]
        raise ValueError(f"--captions {asked.captions}: --features {asked.features} reads none; those that do are {', '.join(reading)}")
    return []


def _stored(reference: ImageSet, features: str, mode: str) -> dict[Form, Moments]:
    """The moments that a reference holds: they are of Inception and one way to resize alone. With those of spatial features, which pytorch-fid does
    not write, they are ADM's; without, of whichever of the two is named."""
    wrote = ("adm",) if reference.moments("spatial") is not None else ("adm", "pytorch-fid")
    if features != "inception" or mode not in wrote:
        return {}
    return {(kind, "moments"): moments for kind in ("pool", "spatial") if (moments := reference.moments(kind)) is not None}


def _check_images(reference: ImageSet, metrics: dict[str, ModuleType], stored: dict[Form, Moments]) -> None:
    """Raises ValueError where a metric needs images of a reference that has moments alone."""
    lacking = [name for name, metric in metrics.items() if (metric.KIND, metric.NEEDS) not in stored]
    if lacking and not reference.n:
        raise ValueError(
            f"--reference {reference.path}: holds moments and no images (arr_0), which --metrics {lacking[0]} needs here; "
            "moments are used with --features inception and --mode adm, or, without mu_s, pytorch-fid"
        )


def _check_widths(stored: dict[Form, Moments], extractor: FeatureExtractor, samples: ImageSet, asked: Asked) -> None:
    """Raises ValueError for moments of another number of features, before anything is computed."""
    found = extractor(next(samples.batches(1))) if stored else {}
    for (kind, _), moments in stored.items():
        if len(moments.mean) != found[kind].shape[1]:
            raise ValueError(f"--reference {asked.reference}: its {kind} moments have {len(moments.mean)} features, not {found[kind].shape[1]}")


def _said(reference: ImageSet, stored: list[str]) -> dict[str, Any]:
    """moments_of_file: the kinds whose moments were taken from the file, of more images than the n that lie in it."""
    return {"path": str(reference.path), "n": reference.n, "sha256": reference.sha, "moments_of_file": stored}
