"""Images -> what metrics take, in one pass; of a reference it is kept on disk.

A form is (kind, "moments" or "rows"). Kept files lie in GSNR_CACHE/references, one a form, named by everything that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gsnr import files
from gsnr.train.cache_root import cache_root
from gsnr.train.evaluation.images import ImageSet
from gsnr.train.extractors import FeatureExtractor
from gsnr.train.metrics import BLOCKS, Blocks, Moments, Rows

Form = tuple[str, str]
VERSION = 1  # of what is computed: another number makes kept files anew


@dataclass
class AllRows:
    """(N,D) float32."""

    n: int
    rows_ND: Rows | None = None
    seen: int = 0

    def add(self, features_BD: Rows) -> None:
        if self.rows_ND is None:
            self.rows_ND = np.empty((self.n, features_BD.shape[1]), np.float32)
        self.rows_ND[self.seen : self.seen + len(features_BD)] = features_BD
        self.seen += len(features_BD)


def extract(
    images: ImageSet,
    extractor: FeatureExtractor,
    forms: Iterable[Form],
    batch: int,
    what: str,
    blocks: int = BLOCKS,
    captions: Sequence[str] = (),
) -> dict[Form, Blocks | Rows]:
    """form -> `Blocks` of moments, or rows. captions: of the images in their order, where the extractor reads them."""
    gathered: dict[Form, Blocks | AllRows] = {form: Blocks(images.n, blocks) if form[1] == "moments" else AllRows(images.n) for form in forms}
    if not gathered:
        return {}
    seen = 0
    with tqdm(total=images.n, desc=f"features of the {what}", unit="image", mininterval=1.0, leave=False) as bar:
        for part in images.batches(batch):
            found = extractor(part, captions[seen : seen + len(part)])
            seen += len(part)
            for (kind, _), into in gathered.items():
                into.add(found[kind])
            bar.update(len(part))
    return {form: into if isinstance(into, Blocks) else _whole(into) for form, into in gathered.items()}


def _whole(gathered: AllRows) -> Rows:
    assert gathered.rows_ND is not None
    return gathered.rows_ND


def of_reference(images: ImageSet, extractor: FeatureExtractor, name: str, forms: Iterable[Form], batch: int) -> dict[Form, Moments | Rows]:
    """The same of a reference, from disk where it was made before; moments as one block. name: of the extractor."""
    wanted = list(forms)
    paths = {form: _path(images, extractor, name, form) for form in wanted}
    kept = {form: found for form in wanted if (found := _kept(paths[form], images, form)) is not None}
    made = extract(images, extractor, [form for form in wanted if form not in kept], batch, "reference", blocks=1)
    for form, features in made.items():
        kept[form] = features.whole if isinstance(features, Blocks) else features
        paths[form].parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(paths[form]) as aside, aside.open("wb") as file:
            _write(file, kept[form])
    return kept


def _write(file: object, found: Moments | Rows) -> None:
    arrays = {"n": np.array(found.n), "mean": found.mean, "covariance": found.covariance} if isinstance(found, Moments) else {"rows": found}
    np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def _path(images: ImageSet, extractor: FeatureExtractor, name: str, form: Form) -> Path:
    depends = {"images": images.sha, "features": name, "mode": extractor.mode, "weights": extractor.sha, "form": form, "version": VERSION}
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    return cache_root() / "references" / f"{name}-{extractor.mode}-{'-'.join(form)}-{key}.npz"


def _kept(path: Path, images: ImageSet, form: Form) -> Moments | Rows | None:
    """None for what is not there or is damaged: the zip's checksums tell."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            if form[1] == "rows":
                rows: Rows = arrays["rows"]
                found: Moments | Rows = rows
                whole = rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == images.n
            else:
                found = Moments(n=int(arrays["n"]), mean=arrays["mean"], covariance=arrays["covariance"])
                whole = found.covariance.shape == (len(found.mean), len(found.mean)) and found.n == images.n
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        print(f"note: {path}: damaged ({error}); made anew", file=sys.stderr)
        return None
    return found if whole else None
