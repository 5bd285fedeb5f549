"""The table: exactly the columns of schema version 1, provenance, errors that name the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsnr import table
from gsnr.estimates import Estimate

SECTION_7 = [
    "run",
    "checkpoint",
    "checkpoint_sha",
    "step",
    "weights",
    "model",
    "vae",
    "data",
    "probe",
    "target",
    "control",
    "projector",
    "group",
    "bin",
    "t_low",
    "t_high",
    "logsnr_low",
    "logsnr_high",
    "n",
    "batch_ref",
    "loss",
    "signal",
    "noise",
    "gsnr",
    "gsnr_low",
    "gsnr_high",
    "gsnr_plugin",
    "gsnr_batch",
    "gsnr_batch_db",
    "noise_scale",
    "detection_limit",
    "below_detection",
    "cos_denoise",
    "cos_low",
    "cos_high",
    "gsnr_constructive",
    "engine",
    "draws",
    "seed",
    "gsnr_version",
    "torch_version",
    "created",
]


def row(**changes) -> dict:
    text = {name: "x" for name, kind in table.CELL_COLUMNS.items() if kind == "string"}
    rest = {name: True if kind == "bool" else 1 for name, kind in table.CELL_COLUMNS.items() if kind != "string"}
    return {name: (text | rest)[name] for name in table.CELL_COLUMNS} | changes


FLOOR = ["floor", "floor_low", "floor_high", "above_floor", "underfit"]  # beside what the design names


def test_columns_are_those_of_the_design() -> None:
    assert [column for column in table.CELL_COLUMNS if column not in FLOOR] == SECTION_7 and set(FLOOR) < table.CELL_COLUMNS.keys()


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a" / "alignment.parquet"
    undefined = dict.fromkeys(("gsnr", "gsnr_low", "gsnr_high", "gsnr_plugin", "gsnr_batch", "gsnr_batch_db", "noise_scale"), float("nan"))
    table.write(path, "cells", [row(n=2, bin=0, signal=0, noise=0, **undefined, logsnr_high=float("inf"))], {"settings": {"bins": 1}})
    back = table.read(path)
    assert list(back.columns) == list(table.CELL_COLUMNS)
    assert np.isnan(back["gsnr"][0])
    assert np.isinf(back["logsnr_high"][0])
    assert table.provenance(path) == table.provenance(str(path)) == {"settings": {"bins": 1}}
    assert table.read(str(path)).equals(back)
    assert [p.name for p in path.parent.iterdir()] == ["alignment.parquet"]


def test_estimate_columns() -> None:
    g = np.random.default_rng(0).standard_normal((20, 3)) + 1
    s = g.sum(0)
    e = Estimate(group="all", q_n=(g**2).sum(1), r_n=g @ s, sum_sq=float(s @ s), cov_sq=3.0)
    columns = table.estimate_columns(e, 256)
    assert columns["gsnr_batch"] == pytest.approx(256 * e.gsnr)
    assert columns["gsnr_batch_db"] == pytest.approx(10 * np.log10(256 * e.gsnr))
    assert columns["noise_scale"] == pytest.approx(e.noise / e.signal)
    zero = Estimate(group="all", q_n=np.ones(3), r_n=np.zeros(3), sum_sq=0.0, cov_sq=1.0)
    assert np.isnan(table.estimate_columns(zero, 256)["gsnr_batch_db"])


def _with_header(path: Path, content: bytes) -> None:
    frame = pq.read_table(path)
    metadata = {**frame.schema.metadata, b"gsnr": content, b"gsnr_sha256": hashlib.sha256(content).hexdigest().encode()}
    pq.write_table(frame.replace_schema_metadata(metadata), path)


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    row = dict.fromkeys(table.METRIC_COLUMNS, 0) | {name: "router" for name, kind in table.METRIC_COLUMNS.items() if kind == "string"}
    table.write(path, "metrics", [row], {})
    assert len(table.read(path, "router")) == 1
    with pytest.raises(ValueError, match=r"t.parquet: a table of probe 'router', not 'alignment'"):
        table.read(path, "alignment")
    for content in (b"[]", b"{", b"{}", b"[" * 10**5):
        _with_header(path, content)
        with pytest.raises(ValueError, match=r"t.parquet: damaged .the 'gsnr' entry"):
            table.read(path)
    table.write(path, "metrics", [row], {})
    frame = pq.read_table(path)
    column = frame.schema.get_field_index("value")
    pq.write_table(frame.set_column(column, "value", pa.array(["x"])), path)
    with pytest.raises(ValueError, match=r"t.parquet: damaged .column 'value' holds"):
        table.read(path)
    table.write(path, "metrics", [row | {"bin": bin_} for bin_ in range(2000)], {})
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(60) + content[64:])
    with pytest.raises(ValueError, match=r"t.parquet: damaged"):
        table.read(path)


def _header(kind: str) -> dict[bytes, bytes]:
    return {b"gsnr": json.dumps({"schema_version": 1, "kind": kind, "provenance": {}}).encode()}


def test_bad_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.parquet: no such table"):
        table.read(tmp_path / "none.parquet")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"damaged\.parquet: not a readable parquet"):
        table.read(damaged)
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), foreign)
    with pytest.raises(ValueError, match=r"foreign\.parquet: not a gsnr table"):
        table.read(foreign)
    other = tmp_path / "other.parquet"
    header = {b"gsnr": json.dumps({"schema_version": 99, "provenance": {}}).encode()}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(header), other)
    with pytest.raises(ValueError, match="schema version 99, this gsnr reads 1"):
        table.read(other)
    empty = tmp_path / "empty.parquet"
    with pytest.raises(ValueError, match=r"empty\.parquet: not written: no rows"):
        table.write(empty, "cells", [], {})
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}).replace_schema_metadata(_header("cells")), empty)
    with pytest.raises(ValueError, match="no rows"):
        table.read(empty)
    with pytest.raises(ValueError, match=r"lacks \['gsnr'\]"):
        table.write(tmp_path / "x.parquet", "cells", [{k: v for k, v in row().items() if k != "gsnr"}], {})
