"""Convolutions, norm layers and activations. They take plain numbers and know nothing of graphs."""

from __future__ import annotations

import torch
from torch import nn


def make_conv(
    channels_in: int,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = True,
    separable: bool = False,
) -> nn.Module:
    """A convolution, or a depthwise kernel x kernel (no bias) followed by a pointwise 1x1.

    Weights are drawn as torchvision's FPN draws them (uniform Kaiming with a=1, He et al. 2015); biases are zero.
    """
    if not separable:
        conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, dilation, groups, bias)
        return _initialise(conv)
    depthwise = nn.Conv2d(channels_in, channels_in, kernel, stride, padding, dilation, channels_in, bias=False)
    pointwise = nn.Conv2d(channels_in, channels, 1, bias=bias)
    return nn.Sequential(_initialise(depthwise), _initialise(pointwise))


def _initialise(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def make_norm(kind: str, channels: int, *, eps: float, momentum: float, groups: int) -> nn.Module:
    """A batch norm, or a group norm of as many groups as divide the channels, up to `groups` and of eight channels."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
    most = max(1, min(groups, channels // 8))
    divisor = max(n for n in range(1, most + 1) if channels % n == 0)
    return nn.GroupNorm(divisor, channels, eps=eps)


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
}


def make_activation(kind: str) -> nn.Module:
    """An element-wise nonlinearity. Never in place: its input may have other readers."""
    return _ACTIVATIONS[kind]()


def fit(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut the surplus rows and columns of a map, and repeat its last ones where some are missing.

    Args:
        x: [N, C, H, W].
        size: (height, width) wanted, within a row or column of (H, W) when strides round differently.

    Returns:
        [N, C, height, width].
    """
    height, width = size
    if x.shape[-2] == height and x.shape[-1] == width:
        return x
    x = x[..., :height, :width]
    missing = (0, width - x.shape[-1], 0, height - x.shape[-2])
    return nn.functional.pad(x, missing, mode="replicate") if any(missing) else x
