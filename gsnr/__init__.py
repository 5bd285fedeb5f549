"""gsnr: the gradient signal-to-noise ratio of any PyTorch model, unbiased, signed and with intervals.

    import gsnr, torch

    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))
    x, y = torch.randn(256, 20), torch.randint(3, (256,))
    batches = [{"x": x[i : i + 64], "y": y[i : i + 64]} for i in range(0, 256, 64)]

    def loss(model, batch):                      # (B,) losses, one per sample
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    result = gsnr.measure(model, loss, batches, groups=lambda name: name.split(".")[0])
    print(result["all"].gsnr, result["all"].ci(0.95), result.groups)

The package knows nothing of diffusion. `gsnr.table`, `gsnr.estimates` and `gsnr.bins` import without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsnr.checking import check as check
    from gsnr.comparison import Comparison as Comparison
    from gsnr.comparison import difference_ci as difference_ci
    from gsnr.estimates import Estimate as Estimate
    from gsnr.measurement import ComparisonResult as ComparisonResult
    from gsnr.measurement import Result as Result
    from gsnr.measurement import compare as compare
    from gsnr.measurement import measure as measure
    from gsnr.monitor import Monitor as Monitor
    from gsnr.pooling import pool as pool

__version__ = "0.1.0"
_LIVES_IN = {
    "Comparison": "gsnr.comparison",
    "ComparisonResult": "gsnr.measurement",
    "Estimate": "gsnr.estimates",
    "Monitor": "gsnr.monitor",
    "Result": "gsnr.measurement",
    "check": "gsnr.checking",
    "compare": "gsnr.measurement",
    "difference_ci": "gsnr.comparison",
    "measure": "gsnr.measurement",
    "pool": "gsnr.pooling",
}
__all__ = [*sorted(_LIVES_IN), "__version__"]


def __getattr__(name: str) -> Any:
    """Loads the names that need torch on first use, so that reading tables and drawing figures never imports it."""
    if name not in _LIVES_IN:
        raise AttributeError(f"module 'gsnr' has no attribute {name!r}")
    return getattr(import_module(_LIVES_IN[name]), name)
