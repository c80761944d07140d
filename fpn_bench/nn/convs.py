"""Convolutions, activations and positional encodings."""

from __future__ import annotations

import torch
from torch import nn

from fpn_bench.graph import path_ops
from fpn_bench.graph.kinds import ActivationKind
from fpn_bench.nn.registry import builds, make_layer
from fpn_bench.nn.resample import StridedConv


@builds(path_ops.Conv)
def _conv(op: path_ops.Conv, channels: int, levels: int) -> nn.Module:
    """A convolution, or a depthwise kernel x kernel (no bias) followed by a pointwise 1x1."""
    if op.separable:
        depthwise = nn.Conv2d(
            channels, channels, op.kernel, op.stride, op.padding, op.dilation, groups=channels, bias=False
        )
        pointwise = nn.Conv2d(channels, op.channels, 1, bias=op.bias)
        conv: nn.Module = nn.Sequential(_initialise(depthwise), _initialise(pointwise, op.gain))
    else:
        plain = nn.Conv2d(
            channels, op.channels, op.kernel, op.stride, op.padding, op.dilation, groups=op.groups, bias=op.bias
        )
        conv = _initialise(plain, op.gain)
    return StridedConv(conv, tile=op.stride if op.tiles else 1) if levels else conv


@builds(path_ops.TransposedConv)
def _transposed_conv(op: path_ops.TransposedConv, channels: int, levels: int) -> nn.Module:
    conv = nn.ConvTranspose2d(
        channels, op.channels, op.kernel, op.stride, op.padding, op.output_padding, op.groups, op.bias
    )
    return StridedConv(_initialise(conv))


def _initialise(conv: nn.Conv2d | nn.ConvTranspose2d, gain: float = 1.0) -> nn.Module:
    """Weights as torchvision's FPN draws them (uniform Kaiming with a=1, He et al. 2015), times `gain`; biases zero."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if gain != 1.0:
        with torch.no_grad():
            conv.weight.mul_(gain)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


_ACTIVATIONS: dict[ActivationKind, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hard_swish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
}


@builds(path_ops.Activation)
def _activation(op: path_ops.Activation, channels: int, levels: int) -> nn.Module:
    """Never in place: its input may have other readers."""
    return nn.LeakyReLU(op.slope) if op.kind == "leaky_relu" else _ACTIVATIONS[op.kind]()


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


@builds(path_ops.PositionalEncoding)
def _positional_encoding(op: path_ops.PositionalEncoding, channels: int, levels: int) -> nn.Module:
    return make_layer(PositionalEncoding, channels, op.temperature)
