"""Tables on disk: one row per measured cell, parquet, schema version 1, with their provenance. Importable without torch.

`alignment.parquet` and its like hold CELL_COLUMNS; probes that measure something other than a G-SNR hold METRIC_COLUMNS (the same keys
with metric, value, low, high). Per-sample sums that let one run be re-analysed without a GPU lie beside the cells
(`alignment.samples.parquet`, SAMPLE_COLUMNS). Pictures are tables of pixels (`vae_pca.maps.parquet`, MAP_COLUMNS).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from gsnr.estimates import Estimate
from gsnr.files import replacing
from gsnr.intervals import NORMAL_95

SCHEMA_VERSION = 1
RUN_COLUMNS = {
    "run": "string",
    "checkpoint": "string",
    "checkpoint_sha": "string",
    "step": "int64",
    "weights": "string",
    "model": "string",
    "vae": "string",
    "data": "string",
    "probe": "string",
    "target": "string",
    "control": "string",
    "projector": "string",
    "group": "string",
    "bin": "int64",
    "t_low": "float64",
    "t_high": "float64",
    "logsnr_low": "float64",
    "logsnr_high": "float64",
}
END_COLUMNS = {
    "seed": "int64",
    "gsnr_version": "string",
    "torch_version": "string",
    "created": "string",
}
ESTIMATE_COLUMNS = {
    "n": "int64",
    "batch_ref": "int64",
    "loss": "float64",
    "signal": "float64",
    "noise": "float64",
    "gsnr": "float64",
    "gsnr_low": "float64",
    "gsnr_high": "float64",
    "gsnr_plugin": "float64",
    "gsnr_batch": "float64",
    "gsnr_batch_db": "float64",
    "noise_scale": "float64",
    "detection_limit": "float64",
    "below_detection": "bool",
    "cos_denoise": "float64",
    "cos_low": "float64",
    "cos_high": "float64",
    "gsnr_constructive": "float64",
    "floor": "float64",
    "floor_low": "float64",
    "floor_high": "float64",
    "above_floor": "bool",
    "underfit": "bool",
    "engine": "string",
    "draws": "int64",
}
CELL_COLUMNS = RUN_COLUMNS | ESTIMATE_COLUMNS | END_COLUMNS
METRIC_COLUMNS = RUN_COLUMNS | {"metric": "string", "value": "float64", "low": "float64", "high": "float64"} | END_COLUMNS
SAMPLE_COLUMNS = {key: RUN_COLUMNS[key] for key in ("run", "checkpoint", "vae", "target", "control", "projector", "group", "bin")} | {
    "image_id": "int64",
    "t": "float64",
    "loss": "float64",
    "q": "float64",
    "r": "float64",
}
MAP_COLUMNS = {key: RUN_COLUMNS[key] for key in ("run", "checkpoint", "vae", "data", "group")} | {
    **dict.fromkeys(("image_id", "y", "x"), "int64"),
    **dict.fromkeys(("red", "green", "blue"), "float64"),
}
KINDS = {"cells": CELL_COLUMNS, "metrics": METRIC_COLUMNS, "samples": SAMPLE_COLUMNS, "maps": MAP_COLUMNS}
HOLDS: dict[str, type | tuple[type, ...]] = {"string": str, "int64": Integral, "float64": Real, "bool": (bool, np.bool_)}
NAN = float("nan")
EASY = 0.9  # share of the cosine to a target that is reached by a constant vector, above which the target is flagged as easy


def estimate_columns(estimate: Estimate, batch_ref: int) -> dict[str, Any]:
    """The columns from `n` to `below_detection` (but `loss`) of one cell. dB is NaN where gsnr <= 0."""
    low, high = estimate.ci()
    return {
        "n": estimate.n,
        "batch_ref": batch_ref,
        "signal": estimate.signal,
        "noise": estimate.noise,
        "gsnr": estimate.gsnr,
        "gsnr_low": low,
        "gsnr_high": high,
        "gsnr_plugin": estimate.gsnr_plugin,
        "gsnr_batch": estimate.scaled(batch_ref),
        "gsnr_batch_db": estimate.decibel(batch_ref),
        "noise_scale": estimate.noise_scale,
        "detection_limit": estimate.detection_limit,
        "below_detection": estimate.below_detection,
    }


def estimate_again(cell: Mapping[str, Any], samples: pd.DataFrame) -> Estimate:
    """The Estimate behind one row of cells, from it and its rows of samples (same target, control, projector, group, bin; in the order of
    image_id): intervals at other levels and paired differences (`gsnr.difference_ci`) without the model. ||S||^2 = sum r; tr(Cov^2) is
    read off the detection limit. Raises ValueError where there are not n samples."""
    rows = samples.sort_values("image_id")
    n = int(cell["n"])
    if len(rows) != n:
        raise ValueError(f"{len(rows)} samples for a cell of n = {n}")
    cov_sq = (cell["detection_limit"] * cell["noise"] / NORMAL_95) ** 2 * n * (n - 1) / 2
    r_n = rows["r"].to_numpy(np.float64)
    return Estimate(group=cell["group"], q_n=rows["q"].to_numpy(np.float64), r_n=r_n, sum_sq=float(r_n.sum()), cov_sq=float(cov_sq))


def check_rows(kind: str, rows: list[dict[str, Any]], where: str) -> None:
    """Raises ValueError, beginning with `where`, for a kind that there is not, and a row whose columns or their values are not the kind's."""
    if kind not in KINDS:
        raise ValueError(f"{where}: rows of kind {kind!r}; there are {', '.join(KINDS)}")
    columns = KINDS[kind]
    for row in rows:
        if row.keys() != columns.keys():
            missing, extra = sorted(columns.keys() - row.keys()), sorted(row.keys() - columns.keys())
            raise ValueError(f"{where}: a row of kind {kind!r} lacks {missing} and has unknown {extra}")
        for column, dtype in columns.items():
            value = row[column]
            if not isinstance(value, HOLDS[dtype]) or (isinstance(value, bool) and dtype != "bool"):
                raise ValueError(f"{where}: a row of kind {kind!r} has {column!r} = {value!r}, which is no {dtype}")


def write(path: Path, kind: str, rows: list[dict[str, Any]], provenance: dict[str, Any]) -> None:
    """Writes rows as one parquet file, aside and renamed. Raises ValueError for a row whose columns are not the kind's."""
    columns = KINDS[kind]
    check_rows(kind, rows, path.name)
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = pd.DataFrame(rows, columns=list(columns)).astype(columns)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    header = {"schema_version": SCHEMA_VERSION, "kind": kind, "provenance": provenance}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"gsnr": json.dumps(header).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such table")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    if b"gsnr" not in metadata:
        raise ValueError(f"{path}: not a gsnr table (its parquet metadata has no 'gsnr' entry)")
    try:
        header = json.loads(metadata[b"gsnr"])
        version = header["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged (the 'gsnr' entry of its metadata: {error})") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {version}, this gsnr reads {SCHEMA_VERSION}; measure again")
    if header.get("kind") not in KINDS:
        raise ValueError(f"{path}: damaged (a table of kind {header.get('kind')!r}; there are {', '.join(KINDS)})")
    return header


def read(path: Path, probe: str | None = None) -> pd.DataFrame:
    """The rows of a table; attrs["labels"]: target -> name for people, where the table brings one.

    Raises ValueError, naming the file, for a missing, damaged, foreign or other-version one, one of no rows, or one that another probe than
    `probe` wrote."""
    import pyarrow as pa

    header = _header(path)
    kind = header["kind"]
    try:
        frame = pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    if frame.empty:
        raise ValueError(f"{path}: the table has no rows")
    lacking = [column for column in KINDS[kind] if column not in frame]
    if lacking:
        raise ValueError(f"{path}: lacks column {lacking[0]!r}: another version of gsnr measured it; measure again (--overwrite)")
    for column, dtype in KINDS[kind].items():
        if dtype != "string" and not pd.api.types.is_numeric_dtype(frame[column]):
            raise ValueError(f"{path}: damaged (column {column!r} holds {frame[column].dtype}, not {dtype})")
    if probe is not None and "probe" in frame and set(frame["probe"]) != {probe}:
        raise ValueError(f"{path}: a table of probe {frame['probe'].iloc[0]!r}, not {probe!r}")
    frame.attrs["labels"] = header.get("provenance", {}).get("labels", {})
    return frame


def provenance(path: Path) -> dict[str, Any]:
    """What was measured, with which settings: the `provenance` the table was written with. Raises as `read` does."""
    return _header(path)["provenance"]


def target_name(target: str, control: str, projector: str, *, labels: Mapping[str, str] = MappingProxyType({})) -> str:
    """How a target is called in tables and legends: "uniform mid", "AHPA, shuffled", "AHPA, own projector".

    labels: target -> name for people, such as `read` leaves in a frame's attrs."""
    base = labels.get(target, target.replace("_", " "))
    marks = {"none": "", "shuffled_class": ", shuffled in class"}
    return base + marks.get(control, f", {control}") + {"ckpt": ", own projector", "fresh": ", fresh projector"}.get(projector, "")
