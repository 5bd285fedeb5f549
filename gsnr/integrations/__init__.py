"""`gsnr.Monitor` in other people's training loops: three lines each, and the training stays as it was.

    monitor = gsnr.integrations.repa(model, heldout, every=1000)            # REPA's loop: model(x_t, t, y=y) -> (v, [projected, ...])
    for step in range(1, steps + 1):
        ...
        monitor(step)
    print(monitor.verdict())

    repa, sit       a Monitor with the losses and held-out batches of REPA's and SiT's loops, in bins of t with fixed times and noise
    accelerate      after every micro-batch: calls a monitor once an optimizer step, and logs to Accelerate's trackers
    transformers    a TrainerCallback for the Trainer of transformers
    lightning       a Callback for the Trainer of Lightning

Packages are imported when their function is called; the library needs none of them.
"""

from __future__ import annotations

from gsnr.integrations._callbacks import accelerate, lightning, transformers
from gsnr.integrations._loops import repa, sit

__all__ = ["accelerate", "lightning", "repa", "sit", "transformers"]
