"""Who a sample is, whatever chunk, batch, order or rank it comes in: a key from its number in the data, or from its own content.

Content: the bits of a sample's rows in every tensor of the batch, as 32-bit words x_k: sum_k w_k x_k modulo 2^64 with fixed odd w_k, which is exact
in any order of summation, on any device (multilinear hashing, Carter and Wegman 1979), one tensor after the other by splitmix64. So the same
numbers in another dtype, or padded to another length, are another sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsnr.batches import Batch, batch_size, take_apart
from gsnr.hashing import GOLDEN, Keys, key_of, scramble

Index = str | Callable[[Batch], Any]  # the name of a batch entry, or batch -> (B,) integers
PIECE, PIECE_CUDA = 1 << 16, 1 << 24  # words that are multiplied at once: what stays in a CPU's cache


@lru_cache(maxsize=16)
def _weights(words: int, device: torch.device) -> Tensor:
    """int64 (words,), odd."""
    return torch.from_numpy((key_of(np.arange(words)) | np.uint64(1)).view(np.int64)).to(device)


def _hashed_rows(x: Tensor, n: int) -> Keys:
    """(n,) hashes of the bits of n rows."""
    if not x.numel():
        return np.zeros(n, dtype=np.uint64)
    row = x.detach().resolve_conj().resolve_neg().reshape(n, -1).contiguous().view(torch.uint8)
    row = F.pad(row, (0, -row.shape[1] % 4))
    word = (row.clone() if row.storage_offset() % 4 else row).view(torch.int32)
    step = max(1, (PIECE_CUDA if x.is_cuda else PIECE) // n)
    total = torch.zeros(n, dtype=torch.int64, device=x.device)
    for part, w in zip(word.split(step, dim=1), _weights(word.shape[1], x.device).split(step), strict=True):
        total += (part.long() * w).sum(1)
    return total.cpu().numpy().view(np.uint64)


def content(batch: Batch, draws: int = 1) -> Keys:
    """(B / draws,) keys of the samples of a batch; the rows of a sample's draws are hashed together."""
    n = batch_size(batch) // draws
    key = np.zeros(n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for x in take_apart(batch)[0]:
            key = scramble(key + GOLDEN + _hashed_rows(x, n))
    return key


def numbers(batch: Batch, index: Index, draws: int = 1) -> Keys:
    """(B / draws,) keys from the samples' numbers. Raises ValueError for an entry that is not there, what are not B whole numbers, and rows
    of one sample that disagree."""
    if isinstance(index, str):
        if not isinstance(batch, Mapping) or index not in batch:
            entries = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"none, it is a {type(batch).__name__}"
            raise ValueError(f"index {index!r} is no entry of the batch (entries: {entries}); name one, or pass a function batch -> (B,) integers")
        found = batch[index]
    else:
        found = index(batch)
    number = found.detach().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
    b = batch_size(batch)
    if number.shape != (b,) or number.dtype.kind not in "iu":
        raise ValueError(f"index must give one whole number per row, shape ({b},), not {number.dtype} {number.shape}")
    by_sample = number.reshape(-1, draws)
    if (by_sample != by_sample[:, :1]).any():
        bad = int(np.flatnonzero((by_sample != by_sample[:, :1]).any(1))[0])
        raise ValueError(f"index: the {draws} rows (draws) of one sample must have one number, not {', '.join(map(str, by_sample[bad]))}")
    return key_of(by_sample[:, 0])


class Identify:
    """Call it with one chunk after the other: chunk -> keys of its samples, uint64 (n,). Without an index, samples of the same content are told
    apart by counting them: to give all copies one sign would be to let it depend on the gradient. Copies on other ranks are not counted."""

    def __init__(self, index: Index | None, draws: int) -> None:
        self.index, self.draws = index, draws
        self.seen: Counter[int] = Counter()

    def __call__(self, chunk: Batch) -> Keys:
        if self.index is not None:
            return numbers(chunk, self.index, self.draws)
        keys = content(chunk, self.draws)
        again = np.zeros(len(keys), dtype=np.uint64)
        for i, key in enumerate(keys.tolist()):
            again[i] = self.seen[key]
            self.seen[key] += 1
        with np.errstate(over="ignore"):
            return np.where(again, scramble(keys + again * GOLDEN), keys)
