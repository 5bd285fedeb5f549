"""Resizing as evaluation code does it: uint8 (B,H,W,3) -> float32 (B,3,S,S) in [0, 255]. The kernels differ, and move a FID by tenths."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gsnr.train.extractors import Images


def channels_first(images_BHWC: Images) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2))).float()


def _taps(size: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
    """TensorFlow 1's source pixels of each target pixel and the weight of the second, in float32 as there: src = dst * (size / side)."""
    source = np.arange(side, dtype=np.float32) * (np.float32(size) / np.float32(side))
    first = source.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), torch.from_numpy(source - first.astype(np.float32))


def tensorflow_bilinear(images_BHWC: Images, side: int) -> Tensor:
    """tf.image.resize_bilinear of TensorFlow 1: no half-pixel offset, corners not aligned, no antialiasing."""
    x_B3HW = channels_first(images_BHWC)
    left, right, across = _taps(x_B3HW.shape[3], side)
    top, bottom, down = _taps(x_B3HW.shape[2], side)
    rows = x_B3HW[..., left] + (x_B3HW[..., right] - x_B3HW[..., left]) * across
    return rows[:, :, top] + (rows[:, :, bottom] - rows[:, :, top]) * down[:, None]


def half_pixel_bilinear(images_BHWC: Images, side: int) -> Tensor:
    """torch's bilinear, corners not aligned, no antialiasing."""
    return F.interpolate(channels_first(images_BHWC), size=(side, side), mode="bilinear", align_corners=False)


def pillow_bicubic(images_BHWC: Images, side: int) -> Tensor:
    """Pillow's antialiased bicubic (a = -1/2), a channel at a time in float32, clipped to [0, 255] and not rounded, as clean-fid does
    (Parmar et al. 2022, arXiv:2104.11222)."""
    out = np.empty((len(images_BHWC), 3, side, side), np.float32)
    for image_HWC, resized_3SS in zip(images_BHWC, out, strict=True):
        for channel in range(3):
            plane = Image.fromarray(image_HWC[..., channel].astype(np.float32))
            resized_3SS[channel] = np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(out).clamp_(0.0, 255.0)
