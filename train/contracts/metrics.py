"""The contract of a metric."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gsnr import plugins
from gsnr.plugins import hold
from gsnr.train.metrics import FORMS, KINDS, Blocks, Moments

IMAGES, WIDTH = 60, 6


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that metric `name` breaks; what was checked otherwise."""
    metric = plugins.find("metrics", name)
    for constant, kind in {"LABEL": str, "KIND": str, "NEEDS": str, "FEATURES": tuple, "COMPARES": bool}.items():
        hold(isinstance(getattr(metric, constant, None), kind), name, f"{constant} is no {kind.__name__}")
    hold(metric.KIND in KINDS, name, f"KIND {metric.KIND!r} does not exist; choose from {', '.join(KINDS)}")
    hold(metric.NEEDS in FORMS, name, f"NEEDS {metric.NEEDS!r} does not exist; choose from {', '.join(FORMS)}")
    known = plugins.names("extractors")
    hold(set(metric.FEATURES) <= set(known), name, f"FEATURES {metric.FEATURES}: choose from {', '.join(known)}")
    of, to = _problem(metric)
    values = metric.measure(of, to)
    hold(isinstance(values, dict) and next(iter(values), None) == name, name, f"measure gives {values!r}, whose first key is not {name!r}")
    for key, value in values.items():
        hold(key == name or key.startswith(f"{name}_"), name, f"{key!r} does not begin with '{name}_'")
        hold(value is None or (isinstance(value, float) and math.isfinite(value)), name, f"{key!r} is {value!r}, no finite float and not None")
    again = metric.measure(*_problem(metric))
    hold(again == values, name, f"the same features give {values} and {again}; draw from a generator of its own")
    same = metric.measure(of, to)
    hold(same == values, name, "changes the features that it is given")
    return [
        "its constants name kinds, forms and extractors that there are",
        f"finite numbers: {', '.join(values)}",
        "the same features, which stay as they are, give the same numbers",
    ]


def _problem(metric: Any) -> tuple[Any, Any]:
    """Two sets of features that are positive and sum to 1, as probabilities do."""
    drawn = np.random.default_rng(0).dirichlet(np.ones(WIDTH), 2 * IMAGES).astype(np.float32)
    samples, reference = drawn[:IMAGES], drawn[IMAGES:]
    if metric.NEEDS == "moments":
        return Blocks.of(samples), Moments.of(reference) if metric.COMPARES else None
    return samples, reference if metric.COMPARES else None
