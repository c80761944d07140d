"""Convolutions and activations. They take plain numbers and know nothing of graphs."""

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
    gain: float = 1.0,
) -> nn.Module:
    """A convolution, or a depthwise kernel x kernel (no bias) followed by a pointwise 1x1.

    Weights are drawn as torchvision's FPN draws them (uniform Kaiming with a=1, He et al. 2015), times `gain`; biases
    are zero.
    """
    if not separable:
        conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, dilation, groups, bias)
        return _initialise(conv, gain)
    depthwise = nn.Conv2d(channels_in, channels_in, kernel, stride, padding, dilation, channels_in, bias=False)
    pointwise = nn.Conv2d(channels_in, channels, 1, bias=bias)
    return nn.Sequential(_initialise(depthwise), _initialise(pointwise, gain))


def make_transposed_conv(
    channels_in: int,
    channels: int,
    kernel: int,
    stride: int,
    *,
    padding: int,
    output_padding: int,
    groups: int,
    bias: bool,
) -> nn.Module:
    """A transposed convolution, initialised as `make_conv` does."""
    conv = nn.ConvTranspose2d(channels_in, channels, kernel, stride, padding, output_padding, groups, bias)
    return _initialise(conv)


def _initialise(conv: nn.Conv2d | nn.ConvTranspose2d, gain: float = 1.0) -> nn.Module:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if gain != 1.0:
        with torch.no_grad():
            conv.weight.mul_(gain)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hard_swish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
}


def make_activation(kind: str, slope: float = 0.01) -> nn.Module:
    """An element-wise nonlinearity. Never in place: its input may have other readers."""
    return nn.LeakyReLU(slope) if kind == "leaky_relu" else _ACTIVATIONS[kind]()


class PositionalEncoding(nn.Module):
    """Adds the sine and cosine of column and row at frequencies that fall geometrically, a quarter of C each.

    Args:
        channels: C, a multiple of 4.
        temperature: the i-th of the C / 4 frequencies is temperature**(-i / (C / 4)).
    """

    def __init__(self, channels: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        quarter = channels // 4
        exponents = torch.arange(quarter, dtype=torch.float32) / quarter
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", temperature**-exponents, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        half = x.shape[1] // 2
        rows, columns = (self._waves(side).to(x.dtype) for side in x.shape[2:])
        return torch.cat([x[:, :half] + columns[:, None, :], x[:, half:] + rows[:, :, None]], dim=1)

    def _waves(self, side: int) -> torch.Tensor:
        """[C / 2, side]."""
        frequencies = self.frequencies.float()
        angles = frequencies[:, None] * torch.arange(side, device=frequencies.device, dtype=torch.float32)
        return torch.cat([angles.sin(), angles.cos()])


def fit(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cut the surplus rows and columns of a map, and repeat its last ones where some are missing.

    Args:
        x: [N, C, H, W].
        size: (height, width) wanted, within a row or column of (H, W) when strides round differently.

    Returns:
        [N, C, height, width].
    """
    height, width = size
    if torch.onnx.is_in_onnx_export():  # sizes are recorded, not known: nothing may depend on how they compare here
        row, column = (torch.arange(side, device=x.device) for side in (height, width))
        return x[..., row.clamp(max=x.shape[-2] - 1), :][..., column.clamp(max=x.shape[-1] - 1)]
    if x.shape[-2] == height and x.shape[-1] == width:
        return x
    x = x[..., :height, :width]
    missing = (0, width - x.shape[-1], 0, height - x.shape[-2])
    return nn.functional.pad(x, missing, mode="replicate") if any(missing) else x
