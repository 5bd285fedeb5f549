"""`inception`: the network of FID, sFID, IS, precision and recall. Modes say how an image becomes 299 x 299:

adm            TensorFlow 1's bilinear, then (x - 128) / 128: ADM's evaluator (Dhariwal and Nichol 2021), the tables of the field
pytorch-fid    torch's bilinear with half-pixel centres, then x / 127.5 - 1: pytorch-fid; another FID
clean-fid      Pillow's antialiased bicubic, then (x - 128) / 128: clean-fid
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from gsnr import files
from gsnr.train.cache_root import cache_root
from gsnr.train.extractors import FeatureExtractor, Images
from gsnr.train.extractors._inception import SIDE, Inception
from gsnr.train.extractors._resize import half_pixel_bilinear, pillow_bicubic, tensorflow_bilinear
from gsnr.train.weights_hash import weights_hash

ENVIRONMENT = "INCEPTION_WEIGHTS"
PUBLISHED = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA = "6726825d"  # begins the SHA-256 of the published file
COUNTER = "num_batches_tracked"  # of batch norm, which reads it in training alone


class Extractor(FeatureExtractor):
    modes = ("adm", "pytorch-fid", "clean-fid")
    metrics = ("fid", "sfid", "is", "precision", "recall")
    gives = ("pool", "spatial", "probabilities")

    def load(self, source: str | None) -> None:
        path = _file(source)
        self.sha = _sha(path)
        if not self.sha.startswith(SHA):
            raise ValueError(f"{path}: SHA-256 {self.sha[:8]}..., not {SHA}...: not the network of FID; the file is at {PUBLISHED}")
        self.model = Inception()
        state = torch.load(path, map_location="cpu", weights_only=True)
        missed = self.model.load_state_dict(state, strict=False)
        wrong = [key for key in (*missed.missing_keys, *missed.unexpected_keys) if not key.endswith(COUNTER)]
        if wrong:
            raise ValueError(f"{path}: its weights lack {wrong[0]}, or hold it beside the network's")

    def random(self) -> None:
        self.model = Inception()
        self.sha = weights_hash(self.model)

    def prepare(self, images_BHWC: Images) -> Tensor:
        if self.mode == "pytorch-fid":
            return half_pixel_bilinear(images_BHWC, SIDE) / 127.5 - 1
        resized = tensorflow_bilinear if self.mode == "adm" else pillow_bicubic
        return (resized(images_BHWC, SIDE) - 128) / 128

    def forward(self, prepared_B: Tensor) -> dict[str, Tensor]:
        return self.model(prepared_B)


def _file(source: str | None) -> Path:
    """The file of weights: a path, an address whose file is kept beside the caches, or the environment's. Raises ValueError for none."""
    named = source or os.environ.get(ENVIRONMENT)
    if not named:
        raise ValueError(f"features inception: name the weights with --weights-file or ${ENVIRONMENT}: a path, or {PUBLISHED}")
    if not named.startswith("https://"):
        path = Path(named)
        if not path.is_file():
            raise ValueError(f"{named}: no such file of weights; --weights-file and ${ENVIRONMENT} take a path or an https:// address")
        return path
    kept = cache_root() / "weights" / f"{hashlib.sha256(named.encode()).hexdigest()[:12]}-{Path(named).name}"
    if not kept.is_file() or not _sha(kept).startswith(SHA):
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            with files.replacing(kept) as aside:
                torch.hub.download_url_to_file(named, str(aside), hash_prefix=SHA)
        except (URLError, RuntimeError, TimeoutError) as error:
            raise ValueError(f"--weights-file {named}: cannot be fetched ({error})") from error
    return kept


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
