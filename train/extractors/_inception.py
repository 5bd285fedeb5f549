"""The Inception network of FID (Szegedy et al. 2015, arXiv:1512.00567; TensorFlow's graph of 2015-12-05), with torchvision's names of weights.

It is torchvision's Inception3 without the auxiliary head, but for what that graph does otherwise: average pools leave the padding out of the mean
(count_include_pad=False), the pool of the last block takes maxima, and there are 1008 classes. Batch norm: eps 0.001; convolutions: no bias.
Legend: B images, (H,W) places, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, WIDTH, CLASSES = 299, 2048, 1008
SPATIAL_CHANNELS, SPATIAL = 7, 7 * 17 * 17


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHW)))


def _average(x_BCHW: Tensor) -> Tensor:
    return F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)


class A(nn.Module):
    """At 35 x 35."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Convolution(inputs, 48, 1), Convolution(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = Convolution(inputs, 64, 1), Convolution(64, 96, 3), Convolution(96, 96, 3)
        self.branch_pool = Convolution(inputs, pooled, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x_BCHW))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW)))
        return torch.cat([self.branch1x1(x_BCHW), five, double, self.branch_pool(_average(x_BCHW))], 1)


class B(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, 2, same=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Convolution(inputs, 64, 1), Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, 2, same=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW)))
        return torch.cat([self.branch3x3(x_BCHW), double, F.max_pool2d(x_BCHW, 3, 2)], 1)


class C(nn.Module):
    """At 17 x 17; between its factors of 7 there are `inner` channels."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Convolution(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Convolution(inputs, inner, 1), Convolution(inner, inner, row)
        self.branch7x7_3 = Convolution(inner, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Convolution(inputs, inner, 1), Convolution(inner, inner, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Convolution(inner, inner, row), Convolution(inner, inner, column)
        self.branch7x7dbl_5 = Convolution(inner, 192, row)
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x_BCHW)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x_BCHW)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x_BCHW), seven, double, self.branch_pool(_average(x_BCHW))], 1)


class D(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Convolution(inputs, 192, 1), Convolution(192, 320, 3, 2, same=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Convolution(inputs, 192, 1), Convolution(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Convolution(192, 192, (7, 1)), Convolution(192, 192, 3, 2, same=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x_BCHW))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x_BCHW)), seven, F.max_pool2d(x_BCHW, 3, 2)], 1)


class E(nn.Module):
    """At 8 x 8. maxima: pool by the largest value, as the last block does."""

    def __init__(self, inputs: int, maxima: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.maxima = maxima
        self.branch1x1, self.branch3x3_1 = Convolution(inputs, 320, 1), Convolution(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Convolution(384, 384, row), Convolution(384, 384, column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Convolution(inputs, 448, 1), Convolution(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Convolution(384, 384, row), Convolution(384, 384, column)
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x_BCHW), self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW))
        fan = [self.branch3x3_2a(three), self.branch3x3_2b(three), self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x_BCHW, 3, 1, 1) if self.maxima else _average(x_BCHW)
        return torch.cat([self.branch1x1(x_BCHW), *fan, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Convolution(3, 32, 3, 2, same=False), Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Convolution(32, 64, 3), Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a = B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = C(768, 128), C(768, 160), C(768, 160), C(768, 192)
        self.Mixed_7a = D(768)
        self.Mixed_7b, self.Mixed_7c = E(1280, maxima=False), E(2048, maxima=True)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """Images of 299 x 299 in [-1, 1] -> pool (B,2048), the mean over places; spatial (B,2023), the first 7 channels of the 1x1 branch of
        Mixed_6d, places first; probabilities (B,1008) of the pooled features by `fc` without its bias, as ADM's evaluator takes them."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_B3HW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial_B7HW = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        pool_BC = self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3))
        probabilities = F.linear(pool_BC, self.fc.weight).softmax(1)
        return {"pool": pool_BC, "spatial": spatial_B7HW.permute(0, 2, 3, 1).flatten(1), "probabilities": probabilities}
