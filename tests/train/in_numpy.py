"""Losses and heads written again in numpy float64, as the tests of alignments compare with. Shapes: T tokens, C channels."""

from __future__ import annotations

import numpy as np
import torch


def f64(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mlp(state: dict[str, torch.Tensor], prefix: str, x: np.ndarray, layers: int) -> np.ndarray:
    for i in range(layers):
        x = x @ f64(state[f"{prefix}.{2 * i}.weight"]).T + f64(state[f"{prefix}.{2 * i}.bias"])
        x = silu(x) if i < layers - 1 else x
    return x


def numpy_cosine(z_TC: np.ndarray, y_TC: np.ndarray) -> float:
    return 1 - np.mean([z @ y / (np.linalg.norm(z) * np.linalg.norm(y)) for z, y in zip(z_TC, y_TC, strict=True)])


def cosines(x_TC: np.ndarray) -> np.ndarray:
    return np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in x_TC] for a in x_TC])


def tokens(f_Cgg: np.ndarray) -> np.ndarray:
    return f_Cgg.reshape(len(f_Cgg), -1).T
