"""Tables made for tests of figures."""

from __future__ import annotations

import pandas as pd

from gsnr.figures import _examples


def cells_of(keys: list[tuple[str, str, str]], run: str = "run") -> pd.DataFrame:
    """An `alignment` table of these targets, controls and projectors."""
    frame = pd.DataFrame(_examples.EXAMPLES["alignment"](run, "alignment"))
    one = frame[(frame["target"] == "ahpa") & (frame["control"] == "none") & (frame["projector"] == "fit")]
    return pd.concat([one.assign(target=t, control=c, projector=p) for t, c, p in keys], ignore_index=True)
