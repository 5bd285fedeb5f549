"""gsnr: the gradient signal-to-noise ratio of any PyTorch model, unbiased, signed and with intervals.

    import gsnr, torch
    from torch import nn

    mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    x, y = torch.randn(256, 1, 8, 8), torch.randint(10, (256,))
    batches = [{"x": x[i : i + 64], "y": y[i : i + 64]} for i in range(0, 256, 64)]

    def loss(model, batch):                      # (B,) losses, one per sample
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    for model in (mlp, conv):
        result = gsnr.measure(model, loss, batches, groups=lambda name: name.split(".")[0])
        print(result.summary(), result["all"].ci(0.95), result.groups)

    measure         one loss -> Result: signal, noise, gsnr, interval, detection limit, effective dimension, cautions, per group
    compare         two losses on the same samples -> cosine of their mean gradients, constructive G-SNR, paired difference
    difference_ci   paired interval for two estimates on the same samples (two targets, two checkpoints)
    pool            one G-SNR over several bins;   Result.save, .load, .merge: disjoint samples, measured apart
    Monitor         measures every K steps of any training loop, which stays the same bit for bit; says whether an auxiliary loss still helps
    integrations    a Monitor in the loops of REPA and SiT, accelerate, transformers and Lightning
    check           is every engine right on this model and loss, and are samples uncoupled? prints a table
    verdict         what a table of probe `alignment` lets one say: per target and range of t, and in two sentences
    load_model      the backbone of a run or checkpoint folder, in eval mode (needs the extra `train`)

Batches are dicts, tuples or any nesting of tensors, also from a DataLoader that shuffles; `Result.to_frame()` is a pandas frame. The library
needs torch, numpy, scipy and pandas, and knows nothing of diffusion. `gsnr.table`, `gsnr.verdicts`, `gsnr.estimates`, `gsnr.intervals`
and `gsnr.comparison` import without torch.

The command `gsnr` holds the rest: `gsnr bench` says what measuring costs, `gsnr coverage` how often the intervals cover, `gsnr --help` lists
all. What it trains, probes and draws is in gsnr.train, gsnr.probes and gsnr.figures, whose packages come with the extras:
pip install 'gsnr[train]', 'gsnr[probe]', 'gsnr[figures]' or 'gsnr[all]'.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsnr.checking import check as check
    from gsnr.comparison import Comparison as Comparison
    from gsnr.comparison import difference_ci as difference_ci
    from gsnr.estimates import Estimate as Estimate
    from gsnr.measurement import compare as compare
    from gsnr.measurement import measure as measure
    from gsnr.monitor import Monitor as Monitor
    from gsnr.pooling import pool as pool
    from gsnr.results import ComparisonResult as ComparisonResult
    from gsnr.results import Result as Result
    from gsnr.train.runs.checkpoint import load_model as load_model
    from gsnr.verdicts import verdict as verdict

__version__ = "0.1.0"
_LIVES_IN = {
    "Comparison": "gsnr.comparison",
    "ComparisonResult": "gsnr.results",
    "Estimate": "gsnr.estimates",
    "Monitor": "gsnr.monitor",
    "Result": "gsnr.results",
    "check": "gsnr.checking",
    "compare": "gsnr.measurement",
    "difference_ci": "gsnr.comparison",
    "load_model": "gsnr.train.runs.checkpoint",
    "measure": "gsnr.measurement",
    "pool": "gsnr.pooling",
    "verdict": "gsnr.verdicts",
}
MODULES = ("comparison", "estimates", "integrations", "intervals", "table", "verdicts")
__all__ = [*sorted(_LIVES_IN), "__version__"]


def __getattr__(name: str) -> Any:
    """Loads the names that need torch on first use, so that reading tables and drawing figures never imports it."""
    if name in MODULES:
        return import_module(f"gsnr.{name}")
    if name not in _LIVES_IN:
        raise AttributeError(f"module 'gsnr' has no attribute {name!r}")
    try:
        return getattr(import_module(_LIVES_IN[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "gsnr":
            raise
        raise ImportError(f"gsnr.{name} needs the package {error.name!r}: pip install 'gsnr[train]'") from error
