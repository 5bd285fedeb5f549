"""What a router gains most by choosing: the vertex rule of a cosine loss.

Let h be a hidden state and Y a target, at one time t. Over samples and tokens together, for every function g of h,

    cos^2(g, Y) = (E g.Y)^2 / (E|g|^2 E|Y|^2)  <=  E|E[Y|h]|^2 / E|Y|^2 ,

since E g.Y = E g.E[Y|h]; the best response g = E[Y|h] reaches it. (The loss is the mean of one cosine a token: the same where norms are equal.)

Groups lie side by side in the channels, Y = [beta_g F_g]_g. Then

    cos^2 = sum_g beta_g^2 a_g / sum_g beta_g^2 b_g ,        a_g = E|E[F_g|h]|^2 ,  b_g = E|F_g|^2 :

a mean of the shares a_g / b_g with the weights beta_g^2 b_g. It is largest where all weight lies on the group with the largest share: the optimum
over beta is a vertex. Layers within a group are summed, F = sum_l w_l F_l, so that

    cos^2 = w^T A w / w^T B w ,        A_lk = E E[F_l|h].E[F_k|h] ,  B_lk = E F_l.F_k .

Where layers are uncorrelated A and B are diagonal and the same holds: all weight on the layer with the largest A_ll / B_ll. In general the optimum
over w >= 0 can lie between. Moments are not centred, as a cosine is not: what is constant counts as read.

A is estimated as E yhat.y on images that the reader yhat was not fitted on, made symmetric. E|yhat|^2 would be biased upwards, by the variance
of the fitted weights. As readers are linear in what they read, the reader of a mixture is the mixture of the readers (at one penalty).
Shapes: N images, T tokens, C channels, L layers, K things to choose from.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.intervals import NORMAL_95, jackknife_se

MOST_LAYERS = 12  # of one group: 2^12 faces of its simplex are looked at in a second or so
Array = NDArray[np.float64]
Interval = tuple[float, float, float]  # value, low, high


def simplex_optimum(a_LL: Array, b_LL: Array) -> tuple[Array, float]:
    """w >= 0 of sum 1 that maximises w^T A w / w^T B w, and the maximum. A symmetric, B symmetric and positive semidefinite, without zeros on
    its diagonal.

    Exact: the ratio has no local maximum on a linear space but the global one, so that a maximum inside a face of the simplex is the leading
    generalised eigenvector of that face's layers. Faces where B is singular are passed over: a face on their edge reaches the same.
    Raises ValueError for more than MOST_LAYERS layers.
    """
    layers = len(a_LL)
    if layers > MOST_LAYERS:
        raise ValueError(f"{layers} layers in a group: the faces of their simplex are too many; {MOST_LAYERS} can be searched")
    best, w_L = -np.inf, np.zeros(layers)
    for size in range(1, layers + 1):
        for face in combinations(range(layers), size):
            here = np.ix_(face, face)
            try:
                values, vectors = scipy.linalg.eigh(a_LL[here], b_LL[here], subset_by_index=(size - 1, size - 1))
            except np.linalg.LinAlgError:
                continue
            v = vectors[:, 0] * np.sign(vectors[0, 0])
            if values[0] > best and (v > 0).all():
                best, w_L = float(values[0]), np.zeros(layers)
                w_L[list(face)] = v / v.sum()
    return w_L, best


class Moments:
    """A and B of one group of layers, image by image."""

    def __init__(self) -> None:
        self.a: list[Array] = []
        self.b: list[Array] = []

    def add(self, read_LNTC: Tensor, f_LNTC: Tensor) -> None:
        """Layers as they are read from the hidden states of held-out images, and as they are."""
        f = f_LNTC.double().flatten(2)
        for kept, other in ((self.a, read_LNTC.double().flatten(2)), (self.b, f)):
            product = torch.einsum("lnc,knc->nlk", other, f) / f_LNTC.shape[2]
            kept.append(((product + product.mT) / 2).cpu().numpy())

    def optimum(self) -> tuple[Array, float]:
        """`simplex_optimum` of the means over images."""
        return simplex_optimum(np.concatenate(self.a).mean(0), np.concatenate(self.b).mean(0))

    def shares(self) -> tuple[Array, Array]:
        """A_ll / B_ll: (L,), and (N,L) without each image in turn."""
        a_NL, b_NL = (np.diagonal(np.concatenate(x), axis1=1, axis2=2) for x in (self.a, self.b))
        return a_NL.sum(0) / b_NL.sum(0), (a_NL.sum(0) - a_NL) / (b_NL.sum(0) - b_NL)


def interval(value: float, left_N: Array) -> Interval:
    """A value with its 95 % jackknife interval over images, from what it is without each in turn."""
    half = NORMAL_95 * jackknife_se(left_N)
    return float(value), float(value) - half, float(value) + half


def choice(share_K: Array, left_NK: Array) -> list[Interval]:
    """The vertex: weight 1 for the largest share, 0 for the others. low, high: what each could be, by 95 % jackknife intervals of paired
    differences to the largest (of single pairs; not corrected for their number): (1, 0, 1) is a choice that is not resolved from another."""
    best = int(np.argmax(share_K))
    others = [k for k in range(len(share_K)) if k != best]
    behind = {k: interval(share_K[best] - share_K[k], left_NK[:, best] - left_NK[:, k])[1] > 0 for k in others}
    found = [(0.0, 0.0, float(not behind.get(k, True))) for k in range(len(share_K))]
    found[best] = (1.0, float(all(behind.values())), 1.0)
    return found
