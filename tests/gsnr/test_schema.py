"""Damaged tables: each fault is one line that names file, row and column; honest ones, NaN and all, are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsnr import recomputation, table
from gsnr.estimates import Estimate
from gsnr.figures._examples import EXAMPLES

PROVENANCE = {"settings": {"bins": 4}, "labels": {}}


def _written(folder: Path, kinds: tuple[str, ...] = ("", ".samples")) -> Path:
    for kind in kinds:
        name = f"alignment{kind}"
        table.write(folder / f"{name}.parquet", kind.removeprefix(".") or "cells", EXAMPLES[name]("run", "alignment"), PROVENANCE)
    return folder / "alignment.parquet"


def _changed(path: Path, change: Callable[[pd.DataFrame], object]) -> None:
    """As somebody would who rewrites the file with pandas, hashes and all left out: an old table, or one made by hand."""
    stored = pq.read_table(path)
    frame = stored.to_pandas()
    made = change(frame)
    header = {key: value for key, value in json.loads(stored.schema.metadata[b"gsnr"]).items() if key != "rows_sha256"}
    new = pa.Table.from_pandas(made if isinstance(made, pd.DataFrame) else frame, preserve_index=False)
    pq.write_table(new.replace_schema_metadata({b"gsnr": json.dumps(header).encode()}), path)


def _set(column: str, value: object, row: int = 7) -> Callable[[pd.DataFrame], object]:
    return lambda frame: frame.isetitem(
        frame.columns.get_loc(column), frame[column].astype(object).mask(frame.index == row, value).convert_dtypes(dtype_backend="pyarrow")
    )


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _written(tmp_path_factory.mktemp("cells"), ("",)).read_bytes()


def test_honest_tables_are_read(tmp_path: Path) -> None:
    """With and without hashes, with and without samples, with the NaN of gradients that are zero."""
    path = _written(tmp_path)
    assert table.read(path)["gsnr"].isna().sum() == 10
    _changed(path, lambda frame: None)
    _changed(path.with_suffix(".samples.parquet"), lambda frame: None)
    pd.testing.assert_frame_equal(table.read(path), table.read(_written(tmp_path / "again")), check_dtype=False)
    path.with_suffix(".samples.parquet").unlink()
    assert len(table.read(path)) == 320


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("gsnr", 5.0), r"row 7, column 'gsnr': 5, above gsnr_high ="),
        (_set("gsnr", np.inf), r"row 7, column 'gsnr': inf, above gsnr_high"),
        (_set("gsnr", np.nan), r"row 7, column 'gsnr': .*, but signal / noise is"),
        (_set("gsnr_low", np.nan), r"row 7, column 'gsnr_low': .*, but gsnr_high is"),
        (_set("gsnr_high", np.inf), r"row 7, column 'gsnr_high': inf, not finite"),
        (_set("signal", np.nan), r"row 7, column 'signal': .*, where a number is needed"),
        (_set("noise", -1.0), r"row 7, column 'gsnr': .*, but signal / noise is"),
        (_set("gsnr_plugin", 0.5), r"row 7, column 'gsnr_plugin': 0.5, but gsnr \+ 1 / n is"),
        (_set("gsnr_batch", 0.5), r"row 7, column 'gsnr_batch': 0.5, but batch_ref x gsnr is"),
        (_set("below_detection", True, 0), r"row 0, column 'below_detection': .*, but not gsnr_low > 0 is 0"),
        (_set("n", 0), r"row 7, column 'n': 0, less than 2"),
        (_set("t_low", 0.9, 4), r"row 4, column 't_low': 0.9, above t_high = 0.25"),
        (_set("t_low", 0.1, 4), r"row 4, column 't_low': 0.1, but in another row of its bin 0"),
        (_set("t_high", 1.5), r"row 7, column 't_high': 1.5, more than 1"),
        (_set("target", None), r"row 7, column 'target': .*, where a value is needed"),
        (_set("bin", 2), r"row 7, column 'bin': 2, the second row of the same"),
        (lambda f: f.drop(index=9), r"row 8, column 'bin': 0, of a target and group whose bins are not all there; they should be as many as 4"),
        (lambda f: f[f["bin"] < 3], r"row 0, column 'bin': 0, of a target and group whose bins are not all there; they should be as many as 4"),
        (lambda f: pd.concat([f, f.iloc[:1]]), r"row 320, column 'bin': 0, the second row of the same"),
        (_set("cos_denoise", 0.7), r"row 7, column 'cos_denoise': 0.7, above cos_high = 0.5"),
    ],
)
def test_damaged_cells_are_named(cells: bytes, tmp_path: Path, change: Callable[[pd.DataFrame], object], message: str) -> None:
    path = tmp_path / "alignment.parquet"
    path.write_bytes(cells)
    _changed(path, change)
    with pytest.raises(ValueError, match=rf"alignment\.parquet: damaged \({message}") as error:
        table.read(path)
    assert "\n" not in str(error.value)


def test_rounding_is_no_damage(tmp_path: Path) -> None:
    """Ends that were rounded otherwise than the value, and the noise of samples that are all alike."""
    end = np.nextafter(1, 0)
    path = tmp_path / "controls.parquet"
    rows = EXAMPLES["controls"]("run", "controls")
    for value, low, high in ((1.0, 0.9, end), (end, 1.0, 1.0), (0.0, 1e-17, 0.1), (1.0, 1.0, end)):
        table.write(path, "metrics", [rows[0] | {"value": value, "low": low, "high": high}, *rows[1:]], {})
        assert table.read(path)["value"][0] == value
    r_n = 18 * (1 + 1e-12 * np.arange(6))
    alike = Estimate(group="all", q_n=np.full(6, 3.0), r_n=r_n, sum_sq=r_n.sum(), cov_sq=1e-30)
    assert -1e-11 < alike.noise < 0
    rows = [row | table.estimate_columns(alike, 256) for row in EXAMPLES["alignment"]("run", "alignment")]
    table.write(path, "cells", rows, {})
    assert (table.read(path)["noise"] == alike.noise).all()


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    """Nor are the tables that were to appear with it; those of before stay."""
    path = _written(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    samples, cells = EXAMPLES["alignment.samples"]("run", "alignment"), EXAMPLES["alignment"]("run", "alignment")
    cells[7]["gsnr_high"] = float("inf")
    with pytest.raises(ValueError, match=r"alignment.parquet: not written: row 7, column 'gsnr_high': inf, not finite$"), table.writing() as write:
        write(path.with_suffix(".samples.parquet"), "samples", samples[:-1], PROVENANCE)
        write(path, "cells", cells, PROVENANCE)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_cells_are_held_against_their_samples(tmp_path: Path) -> None:
    """A row that is right in itself, made up throughout: only its samples tell."""

    def forged(frame: pd.DataFrame) -> None:
        for column in ("signal", "gsnr", "gsnr_low", "gsnr_high", "gsnr_batch"):
            frame.loc[0, column] *= 1.01
        frame.loc[0, "gsnr_plugin"] = frame.loc[0, "gsnr"] + 1 / frame.loc[0, "n"]
        frame.loc[0, "gsnr_batch_db"] = 10 * np.log10(frame.loc[0, "gsnr_batch"])
        frame.loc[0, "noise_scale"] = frame.loc[0, "noise"] / frame.loc[0, "signal"]

    path = _written(tmp_path)
    beside = path.with_suffix(".samples.parquet")
    _changed(path, forged)
    with pytest.raises(ValueError, match=r"alignment.parquet: damaged .row 0, column 'signal': 0.202, but 0.2 from alignment.samples.parquet"):
        table.read(path)
    _written(tmp_path)
    _changed(beside, lambda frame: frame.drop(index=3))
    with pytest.raises(ValueError, match=r"alignment.parquet: damaged .row 0, column 'n': 5 samples for a cell of n = 6, in alignment.samples"):
        table.read(path)
    _written(tmp_path)
    _changed(beside, lambda frame: frame.drop(index=range(6)))
    with pytest.raises(ValueError, match=r"alignment.parquet: damaged .row 0, column 'n': 0 samples for a cell of n = 6, in alignment.samples"):
        table.read(path)
    _written(tmp_path)

    def forgotten(frame: pd.DataFrame) -> None:
        frame.loc[0, ["gsnr_low", "gsnr_high", "noise_scale"]] = np.nan
        frame.loc[0, "below_detection"] = True

    _changed(path, forgotten)
    with pytest.raises(ValueError, match=r"alignment.parquet: damaged .row 0, column 'gsnr_low': nan, but .* from alignment.samples.parquet"):
        table.read(path)
    _written(tmp_path)
    table.write(beside, "samples", EXAMPLES["alignment.samples"]("run", "alignment"), PROVENANCE | {"created": "another day"})
    with pytest.raises(ValueError, match=r"alignment.samples.parquet: of another measurement than alignment.parquet beside it"):
        table.read(path)
    _written(tmp_path)
    _changed(beside, _set("q", -1.0))
    with pytest.raises(ValueError, match=r"alignment.samples.parquet: damaged .row 7, column 'q': -1, less than 0"):
        table.read(path)


def test_metrics_and_maps(tmp_path: Path) -> None:
    for name, column, value, message in (
        ("controls", "value", 9.0, "above high ="),
        ("controls", "low", None, "but high is"),
        ("vae_pca.maps", "red", 2.0, "more than 1"),
        ("vae_pca.maps", "x", 6, "the second row of the same"),
    ):
        path = tmp_path / f"{name}.parquet"
        table.write(path, "maps" if "maps" in name else "metrics", EXAMPLES[name]("run", name), {})
        assert len(table.read(path))
        _changed(path, _set(column, value))
        with pytest.raises(ValueError, match=rf"{name}.parquet: damaged .row 7, column '{column}': .*{message}"):
            table.read(path)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    """Bits of the whole file, one at a time: an error, or rows and provenance to the last bit as they were."""
    path = _written(tmp_path, ("",))
    before, said, content = table.read(path), table.provenance(path), path.read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for place, bit in zip(rng.integers(0, len(content), 40), rng.integers(0, 8, 40), strict=True):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            after, says = table.read(path), table.provenance(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            found += 1
        else:
            pd.testing.assert_frame_equal(before, after, check_exact=True)
            assert says == said
    assert found > 20


def _many(cells: int, n: int) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Cells of n samples of random gradients, some of them zero, and n that differ; their samples with the number of their cell."""
    rng = np.random.default_rng(0)
    rows, parts = [], []
    for row in range(cells):
        g = (rng.normal(size=(n + row % 7, 5)) + 0.2 * (row % 3)) * (row % 5 > 0)
        q_n, r_n, loss_n = np.square(g).sum(1), g @ g.sum(0), rng.random(len(g))
        estimate = Estimate(group="all", q_n=q_n, r_n=r_n, sum_sq=float(r_n.sum()), cov_sq=float(np.square(np.cov(g.T)).sum()) if row % 4 else np.nan)
        rows.append(table.estimate_columns(estimate, 256) | {"group": "all", "loss": loss_n.mean()})
        parts.append(pd.DataFrame({"row": row, "image_id": np.arange(len(g)), "q": q_n, "r": r_n, "loss": loss_n}))
    samples = pd.concat(parts, ignore_index=True)
    return pd.DataFrame(rows), samples["row"].to_numpy(), samples


@pytest.mark.parametrize("n", [3, 125])  # 125 to 131: on both sides of `estimates.MANY_SAMPLES`
def test_all_cells_at_once_are_what_each_is_alone(n: int) -> None:
    """As `estimate_again` has them, one by one; and one part in a hundred in any column of any cell is noticed, but by an interval's slack."""
    cells, row_N, samples = _many(60, n)
    recomputation.check(cells, row_N, samples, "samples")
    for column in ("signal", "noise", "loss"):
        for row in (0, 7, 59):
            forged = cells.copy()
            forged.loc[row, column] += 0.01 * (samples["loss" if column == "loss" else "q"][row_N == row].mean() + 1e-9)
            with pytest.raises(recomputation.Fault, match=rf"row {row}, column '{column}': .* from samples$"):
                recomputation.check(forged, row_N, samples, "samples")
    for row in range(60):
        low, high = table.estimate_again(cells.loc[row].to_dict(), samples[row_N == row]).ci()
        np.testing.assert_allclose([low, high], cells.loc[row, ["gsnr_low", "gsnr_high"]].to_numpy(float), rtol=1e-6)  # NaN where there is none
    made, _, told_K = recomputation._again(
        *(cells[x].to_numpy() for x in ("n", "detection_limit")), row_N, *(samples[x].to_numpy() for x in ("q", "r", "loss"))
    )
    for column in recomputation.COLUMNS:
        np.testing.assert_allclose(made[column][told_K], cells[column][told_K], rtol=1e-6, atol=1e-12)


def test_a_table_is_not_recomputed_cell_by_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It took 0.3 ms a cell."""
    path = _written(tmp_path)
    monkeypatch.setattr(table, "Estimate", None)
    assert len(table.read(path)) == 320
