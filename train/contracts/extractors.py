"""The contract of an extractor."""

from __future__ import annotations

import numpy as np

from gsnr import plugins
from gsnr.plugins import hold
from gsnr.train.extractors import FeatureExtractor
from gsnr.train.metrics import KINDS

SIDE = 64
CAPTIONS = ("a small red seven at the top left on black", "top right a blue one that is large on a grey background", "grey a one small blue top left")


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that extractor `name` breaks, on its example; what was checked otherwise."""
    cls = plugins.find("extractors", name).Extractor
    hold(isinstance(cls, type) and issubclass(cls, FeatureExtractor), name, "Extractor does not extend FeatureExtractor")
    for what in ("modes", "metrics", "gives"):
        listed = getattr(cls, what, ())
        hold(isinstance(listed, tuple) and bool(listed) and all(isinstance(word, str) for word in listed), name, f"{what} is no tuple of names")
    hold(set(cls.gives) <= set(KINDS), name, f"gives {cls.gives}: choose from {', '.join(KINDS)}")
    known = plugins.names("metrics")
    hold(set(cls.metrics) <= set(known), name, f"metrics {cls.metrics}: choose from {', '.join(known)}")
    for metric in cls.metrics:
        hold(plugins.find("metrics", metric).KIND in cls.gives, name, f"metric {metric!r} takes features that it does not give")
    shapes = [_check_mode(name, cls, mode) for mode in cls.modes]
    return [
        f"features in float32, the same each time: {', '.join(f'{kind} {width}' for kind, width in shapes[0].items())}",
        "an image's features are its own, whatever is in its batch; another image has others",
        "no gradient; the images stay as they are",
    ]


def _check_mode(name: str, cls: type[FeatureExtractor], mode: str) -> dict[str, int]:
    extractor = cls.example(mode)
    hold(isinstance(extractor.sha, str) and bool(extractor.sha), name, "sha is no hash of its weights")
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    before = images.copy()
    captions = CAPTIONS if cls.reads_captions else ()
    found = extractor(images, captions)
    hold(tuple(found) == cls.gives, name, f"mode {mode}: gives {tuple(found)}, and says {cls.gives}")
    hold(not any(p.requires_grad for p in extractor.model.parameters()), name, "its weights take gradients")
    again, alone = extractor(images, captions), extractor(images[1:2], captions[1:2])
    hold(np.array_equal(images, before), name, f"mode {mode}: changes the images that it is given")
    for kind, x_BD in found.items():
        hold(x_BD.ndim == 2 and len(x_BD) == 3, name, f"mode {mode}: {kind} of shape {x_BD.shape} for three images, not (3,D)")
        hold(np.array_equal(again[kind], x_BD), name, f"mode {mode}: the same images have two {kind} features")
        scale = float(np.abs(x_BD).max())
        apart = float(np.abs(alone[kind][0] - x_BD[1]).max())
        hold(apart <= 1e-3 * scale, name, f"mode {mode}: an image's {kind} features depend on the other images of its batch")
        hold(not np.array_equal(x_BD[0], x_BD[1]), name, f"mode {mode}: another image has the same {kind} features")
    return {kind: x_BD.shape[1] for kind, x_BD in found.items()}
