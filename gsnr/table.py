"""Tables on disk: one row per measured cell, parquet, schema version 1, with their provenance. Importable without torch.

`alignment.parquet` and its like hold CELL_COLUMNS; probes that measure something other than a G-SNR hold METRIC_COLUMNS (the same keys
with metric, value, low, high). Per-sample sums that let one run be re-analysed without a GPU lie beside the cells
(`alignment.samples.parquet`, SAMPLE_COLUMNS). Pictures are tables of pixels (`vae_pca.maps.parquet`, MAP_COLUMNS).

What is read is not believed as it stands: rows and provenance have a SHA-256 in the file's metadata (tables of before had none), rows hold to
`gsnr.schema`, and cells are computed again from their samples where those lie beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from gsnr import files, recomputation, schema
from gsnr.estimates import Estimate
from gsnr.intervals import NORMAL_95

AGAIN = "measure again (gsnr probe --overwrite)"
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
    q_n, r_n, n = rows["q"].to_numpy(np.float64), rows["r"].to_numpy(np.float64), int(cell["n"])
    if len(r_n) != n:
        raise ValueError(f"{len(r_n)} samples for a cell of n = {n}")
    cov_sq = (cell["detection_limit"] * cell["noise"] / NORMAL_95) ** 2 * n * (n - 1) / 2
    return Estimate(group=cell["group"], q_n=q_n, r_n=r_n, sum_sq=float(r_n.sum()), cov_sq=float(cov_sq))


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
    """Writes rows as one parquet file, aside and renamed. Raises OSError naming the path, and ValueError for no rows, a row whose columns are not
    the kind's, and what `read` would refuse by `gsnr.schema`: then what was there before is left."""
    with writing() as write_one:
        write_one(path, kind, rows, provenance)


@contextmanager
def writing() -> Iterator[Any]:
    """Several tables that appear together, once all of them are written: gives a function with the arguments of `write`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.together() as replacing:

        def write_one(path: Path, kind: str, rows: list[dict[str, Any]], provenance: dict[str, Any]) -> None:
            columns = KINDS[kind]
            check_rows(kind, rows, path.name)
            frame = pd.DataFrame(rows, columns=list(columns)).astype(columns)
            if frame.empty:
                raise ValueError(f"{path}: not written: no rows")
            try:
                schema.check(kind, frame, columns, _bins(provenance))
            except schema.Fault as fault:
                raise ValueError(f"{path}: not written: {fault}") from fault
            header = {"schema_version": SCHEMA_VERSION, "kind": kind, "provenance": provenance, "rows_sha256": _sha_of_rows(frame)}
            text = json.dumps(header).encode()
            table = pa.Table.from_pandas(frame, preserve_index=False)
            metadata = {b"gsnr": text, b"gsnr_sha256": hashlib.sha256(text).hexdigest().encode()}
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside:
                pq.write_table(table, aside, compression="zstd", write_page_checksum=True)

        yield write_one


def _bins(provenance: Mapping[str, Any]) -> int | None:
    """How many bins of t its settings say; None where they do not."""
    settings = provenance.get("settings")
    bins = settings.get("bins") if isinstance(settings, dict) else None
    return bins if isinstance(bins, int) else None


def _sha_of_rows(frame: pd.DataFrame) -> str:
    """SHA-256 of names, types and values of all columns, whatever the file's encoding. Text: its words as they appear, and which is where."""
    digest = hashlib.sha256()
    for column in frame:
        values, words = frame[column].to_numpy(), []
        if values.dtype.kind not in "ifub":
            values, found = pd.factorize(frame[column])
            words = [str(word) for word in found]
        elif values.dtype.kind == "f":
            values = np.where(np.isnan(values), NAN, values)  # parquet keeps one NaN
        digest.update(json.dumps([column, str(values.dtype), words]).encode() + values.tobytes())
    return digest.hexdigest()


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such table")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({_line(error)}); {AGAIN}") from error
    if b"gsnr" not in metadata:
        raise ValueError(f"{path}: not a gsnr table (its parquet metadata has no 'gsnr' entry)")
    if metadata.get(b"gsnr_sha256", sha := hashlib.sha256(metadata[b"gsnr"]).hexdigest().encode()) != sha:
        raise ValueError(f"{path}: damaged (its metadata are not those that were written); {AGAIN}")
    try:
        header = files.parse_json(metadata[b"gsnr"])
        version = header["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged (the 'gsnr' entry of its metadata: {error})") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {version}, this gsnr reads {SCHEMA_VERSION}; measure again")
    if header.get("kind") not in KINDS:
        raise ValueError(f"{path}: damaged (a table of kind {header.get('kind')!r}; there are {', '.join(KINDS)})")
    if not isinstance(header.get("provenance"), dict):
        raise ValueError(f"{path}: damaged (its metadata have no provenance)")
    return header


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _rows(path: Path, header: dict[str, Any]) -> pd.DataFrame:
    """The rows, as `read` has them but for the comparison with samples."""
    import pyarrow as pa

    columns = KINDS[header["kind"]]
    try:
        frame = pd.read_parquet(path, page_checksum_verification=True)  # before a damaged page is decoded, which can crash
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, AttributeError) as error:  # pandas' own notes in the file, changed
        raise ValueError(f"{path}: damaged ({_line(error)}); {AGAIN}") from error
    if frame.empty:
        raise ValueError(f"{path}: the table has no rows")
    lacking = [column for column in columns if column not in frame]
    if lacking:
        raise ValueError(f"{path}: lacks column {lacking[0]!r}: another version of gsnr measured it; {AGAIN}")
    for column, dtype in columns.items():
        if dtype != "string" and not pd.api.types.is_numeric_dtype(frame[column]):
            raise ValueError(f"{path}: damaged (column {column!r} holds {frame[column].dtype}, not {dtype})")
    try:
        schema.check(header["kind"], frame, columns, _bins(header["provenance"]))
    except schema.Fault as fault:
        raise ValueError(f"{path}: damaged ({fault}); {AGAIN}") from fault
    if "rows_sha256" in header and header["rows_sha256"] != _sha_of_rows(frame):
        raise ValueError(f"{path}: damaged (its rows are not those that were written, by their SHA-256); {AGAIN}")
    return frame


def read(path: str | Path, probe: str | None = None) -> pd.DataFrame:
    """The rows of a table; attrs["labels"]: target -> name for people, where the table brings one.

    Raises ValueError, naming the file, for a missing, damaged, foreign or other-version one, one of no rows, one that another probe than
    `probe` wrote, and cells that are not what their samples (in the file beside, where there is one) say, or have none there."""
    path = Path(path)
    header = _header(path)
    frame = _rows(path, header)
    if probe is not None and "probe" in frame and set(frame["probe"]) != {probe}:
        raise ValueError(f"{path}: a table of probe {frame['probe'].iloc[0]!r}, not {probe!r}")
    beside = path.with_suffix(".samples.parquet")
    if header["kind"] == "cells" and beside.is_file():
        _check_samples(path, frame, header, beside)
    frame.attrs["labels"] = header["provenance"].get("labels", {})
    return frame


def _check_samples(path: Path, cells: pd.DataFrame, header: dict[str, Any], beside: Path) -> None:
    """Raises ValueError where cells are not what their samples make, or the two files are of different measurements."""
    of_samples = _header(beside)
    if of_samples["provenance"] != header["provenance"]:
        raise ValueError(f"{beside}: of another measurement than {path.name} beside it; {AGAIN}")
    keys = [*schema.WHICH, "bin"]
    samples = _rows(beside, of_samples)[[*keys, "q", "r", "loss"]]
    by_row = cells[keys].assign(row=np.arange(len(cells))).merge(samples, on=keys).sort_values("row", kind="stable")
    try:
        recomputation.check(cells, by_row["row"].to_numpy(), by_row, beside.name)
    except recomputation.Fault as fault:
        raise ValueError(f"{path}: damaged ({fault}); {AGAIN}") from fault


def provenance(path: str | Path) -> dict[str, Any]:
    """What was measured, with which settings: the `provenance` the table was written with. Raises ValueError, naming the file, for a missing,
    foreign or other-version one and damaged metadata; the rows are not looked at."""
    return _header(Path(path))["provenance"]


def target_name(target: str, control: str, projector: str, *, labels: Mapping[str, str] = MappingProxyType({})) -> str:
    """How a target is called in tables and legends: "uniform mid", "AHPA, shuffled", "AHPA, own projector".

    labels: target -> name for people, such as `read` leaves in a frame's attrs."""
    base = labels.get(target, target.replace("_", " "))
    marks = {"none": "", "shuffled_class": ", shuffled in class"}
    return base + marks.get(control, f", {control}") + {"ckpt": ", own projector", "fresh": ", fresh projector"}.get(projector, "")
