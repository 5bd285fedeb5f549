"""Logistic regressions of the same labels on several sets of features, solved together.

Of the features z = (x - mean) / std of the train images,

    minimise  sum_n cross_entropy(z_n W + b, y_n) + |W|^2 / (2 C)

by L-BFGS, float64, on all problems at once: they share no parameter, so that the sum of their losses has its minimum where each has. The minimum is
unique up to a constant in b, which changes no prediction; it is reached to `TOLERANCE`, ten times closer than scikit-learn's default at least.
In coordinates of the eigenvectors of E z z^T, scaled to one curvature (Böhning 1992 bounds the Hessian by half of it), it takes some tens of steps.
Shapes: K problems, N images, D features, L classes.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

C = 0.1  # inverse of the penalty
STEPS = 500  # at most
TOLERANCE = 1e-6  # of the gradient, of the loss per image


def accuracies(train_KND: Tensor, train_N: Tensor, held_KMD: Tensor, held_M: Tensor) -> list[float]:
    """Share of held-out images that each probe puts into their class. Features float64, labels int64. Warns of a descent that did not converge."""
    classes_L, y_N = torch.unique(train_N, return_inverse=True)
    mean, std = train_KND.mean(1, keepdim=True), train_KND.std(1, correction=0, keepdim=True)
    std = torch.where(std > 0, std, 1.0)
    z_KND, held_KMD = (train_KND - mean) / std, (held_KMD - mean) / std
    weight_KDL, bias_KL = fit(z_KND, y_N, len(classes_L))
    guess_KM = classes_L[(held_KMD @ weight_KDL + bias_KL.unsqueeze(1)).argmax(2)]
    return (guess_KM == held_M).double().mean(1).tolist()


def fit(z_KND: Tensor, y_N: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weights (K,D,L) and biases (K,L) of standardised features; y: 0 .. classes - 1."""
    problems, n, features = z_KND.shape
    curvature_KD, axes_KDD = torch.linalg.eigh(z_KND.mT @ z_KND / n)
    axes_KDD = axes_KDD * (0.5 * curvature_KD.clamp_min(0) + 1 / (C * n)).rsqrt().unsqueeze(1)
    v_KDL = z_KND.new_zeros(problems, features, classes, requires_grad=True)
    bias_KL = z_KND.new_zeros(problems, classes, requires_grad=True)
    y_KN = y_N.expand(problems, n)
    optimizer = torch.optim.LBFGS(
        [v_KDL, bias_KL], max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight_KDL = axes_KDD @ v_KDL
        logits_KNL = torch.baddbmm(bias_KL.unsqueeze(1), z_KND, weight_KDL)
        loss = F.cross_entropy(logits_KNL.flatten(0, 1), y_KN.flatten(), reduction="sum") / n + weight_KDL.square().sum() / (2 * C * n)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
        closure()
    assert v_KDL.grad is not None and bias_KL.grad is not None
    left = max(float(v_KDL.grad.abs().max()), float(bias_KL.grad.abs().max()))
    if left > 10 * TOLERANCE:
        warnings.warn(f"a linear probe did not converge in {STEPS} steps: a gradient of {left:.1e} is left", stacklevel=2)
    return (axes_KDD @ v_KDL).detach(), bias_KL.detach()
