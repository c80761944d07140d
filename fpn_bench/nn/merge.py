"""Making one map of several. Every module takes a list of [N, C, H, W] of one size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from fpn_bench.graph import merge_ops
from fpn_bench.graph.kinds import MergeKind
from fpn_bench.nn.registry import builds, make_layer


class Sum(nn.Module):
    """x_1 + x_2 + ..., in order."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        total = maps[0]
        for x in maps[1:]:
            total = total + x
        return total

    @staticmethod
    def expression(maps: Sequence[str]) -> str:
        """The same as Python text."""
        return " + ".join(maps)


class Mean(Sum):
    """The sum divided by the number of maps."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        return super().forward(maps) / len(maps)

    @staticmethod
    def expression(maps: Sequence[str]) -> str:
        """The same as Python text."""
        return f"({' + '.join(maps)}) / {len(maps)}"


class Max(nn.Module):
    """The element-wise maximum."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        largest = maps[0]
        for x in maps[1:]:
            largest = torch.maximum(largest, x)
        return largest

    @staticmethod
    def expression(maps: Sequence[str]) -> str:
        """The same as Python text."""
        return functools.reduce(lambda one, other: f"torch.maximum({one}, {other})", maps)


class Product(nn.Module):
    """The element-wise product."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        total = maps[0]
        for x in maps[1:]:
            total = total * x
        return total

    @staticmethod
    def expression(maps: Sequence[str]) -> str:
        """The same as Python text."""
        return " * ".join(maps)


class Concat(nn.Module):
    """Along channels, in order."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C_i, H, W] -> [N, sum C_i, H, W]."""
        return torch.cat(maps, dim=1)

    @staticmethod
    def expression(maps: Sequence[str]) -> str:
        """The same as Python text."""
        return f"torch.cat(({', '.join(maps)}), dim=1)"


class WeightedSum(nn.Module):
    """A sum with learned weights for each map, all ones at the start.

    Args:
        inputs: number of maps.
        kind: ``"weighted"`` takes the weights as they are, ``"softmax"`` their softmax, ``"fast_normalised"``
            relu(w_i) / (sum_j relu(w_j) + eps), EfficientDet's "fast normalized fusion" (Tan et al. 2020, section 3.3).
        eps: in the denominator of the latter.
        channels: one weight a map and channel; 0 is one a map.
    """

    def __init__(self, inputs: int, *, kind: str, eps: float = 1e-4, channels: int = 0) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs, channels, 1, 1) if channels else torch.ones(inputs))
        self.kind = kind
        self.eps = eps

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        # In half precision 1 + eps is 1, and a lone weight would have no gradient.
        weights = self.weights.to(torch.promote_types(self.weights.dtype, torch.float32))
        if self.kind == "softmax":
            weights = weights.softmax(0)
        elif self.kind == "fast_normalised":
            positive = weights.relu()
            weights = positive / (positive.sum(0) + self.eps)
        each = weights.to(maps[0].dtype).unbind()
        total = each[0] * maps[0]
        for x, weight in zip(maps[1:], each[1:], strict=True):
            total = torch.addcmul(total, x, weight)
        return total


class SpatialSoftmax(nn.Module):
    """A sum whose weights are, at each pixel, the softmax of the last map's channels (Liu et al. 2019, ASFF)."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of n [N, C, H, W] and one [N, n, H, W] -> [N, C, H, W]."""
        each = maps[-1].softmax(1).chunk(len(maps) - 1, dim=1)  # n of [N, 1, H, W]
        total = each[0] * maps[0]
        for x, weight in zip(maps[1:-1], each[1:], strict=True):
            total = torch.addcmul(total, x, weight)
        return total


class Attention(nn.Module):
    """softmax(query . key) value over all pixels, in groups of channels (Vaswani et al. 2017).

    Args:
        heads: groups of channels that attend on their own.
        scaled: the products are divided by the square root of a head's channels.
    """

    def __init__(self, heads: int, scaled: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = None if scaled else 1.0

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Query and key [N, C, H, W], value [N, C', H, W] -> [N, C', H, W]."""
        query, key, value = (
            x.reshape(x.shape[0], self.heads, x.shape[1] // self.heads, -1).transpose(2, 3) for x in maps
        )  # [N, heads, H * W, C / heads]
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return mixed.transpose(2, 3).reshape(maps[2].shape)


class Reassemble(nn.Module):
    """Each pixel from its kernel x kernel neighbourhood, by the softmax of the filter map there (Wang et al. 2019).

    Neighbours outside of the map are zero.

    Args:
        kernel: side of the neighbourhood.
        dilation: spacing of the neighbours.
    """

    def __init__(self, kernel: int, dilation: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.dilation = dilation

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """[N, C, H, W] and [N, kernel**2, H, W] -> [N, C, H, W]."""
        x, logits = maps
        height, width = x.shape[-2:]
        padded = F.pad(x, [self.dilation * (self.kernel // 2)] * 4)
        weights = logits.softmax(1).chunk(self.kernel**2, dim=1)  # kernel**2 of [N, 1, H, W]
        total = torch.zeros_like(x)
        for tap, weight in enumerate(weights):
            row, column = (self.dilation * i for i in divmod(tap, self.kernel))
            total = torch.addcmul(total, padded[..., row : row + height, column : column + width], weight)
        return total


class DeformableConv(nn.Module):
    """A convolution whose taps are moved, pixel by pixel, by a map of offsets (Dai et al. 2017; Zhu et al. 2019).

    Args:
        channels_in: of the map.
        channels: output channels.
        kernel: side of the kernel.
        bias: a bias per output channel.
        modulated: the last third of the offsets' channels are logits that weigh the taps.
    """

    def __init__(self, channels_in: int, channels: int, kernel: int, *, bias: bool, modulated: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.padding = kernel // 2
        self.modulated = modulated
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """[N, C, H, W] and [N, 2 or 3 * kernel**2 * groups, H, W] -> [N, C', H, W]."""
        x, offsets = maps
        mask = None
        if self.modulated:
            split = offsets.shape[1] // 3 * 2
            offsets, mask = offsets[:, :split], offsets[:, split:].sigmoid()
        # torchvision has no kernel for half precision on the CPU.
        dtype = torch.promote_types(x.dtype, torch.float32)
        out: torch.Tensor = deform_conv2d(
            x.to(dtype),
            offsets.to(dtype),
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            padding=self.padding,
            mask=None if mask is None else mask.to(dtype),
        )
        return out.to(x.dtype)


_PLAIN: dict[MergeKind, type[nn.Module]] = {"sum": Sum, "mean": Mean, "max": Max, "product": Product, "concat": Concat}


@builds(merge_ops.Merge)
def _merge(merge: merge_ops.Merge, widths: Sequence[int]) -> nn.Module:
    if merge.kind in _PLAIN:
        return _PLAIN[merge.kind]()
    more: dict[str, Any] = {"eps": merge.eps} if merge.kind == "fast_normalised" else {}
    if merge.per_channel:
        more["channels"] = widths[0]
    return make_layer(WeightedSum, len(widths), kind=merge.kind, **more)


@builds(merge_ops.SpatialSoftmax)
def _spatial_softmax(merge: merge_ops.SpatialSoftmax, widths: Sequence[int]) -> nn.Module:
    return make_layer(SpatialSoftmax)


@builds(merge_ops.Attention)
def _attention(merge: merge_ops.Attention, widths: Sequence[int]) -> nn.Module:
    return make_layer(Attention, merge.heads, merge.scaled)


@builds(merge_ops.Reassemble)
def _reassemble(merge: merge_ops.Reassemble, widths: Sequence[int]) -> nn.Module:
    return make_layer(Reassemble, merge.kernel, merge.dilation)


@builds(merge_ops.DeformableConv)
def _deformable_conv(merge: merge_ops.DeformableConv, widths: Sequence[int]) -> nn.Module:
    return make_layer(
        DeformableConv, widths[0], merge.channels_out, merge.kernel, bias=merge.bias, modulated=merge.modulated
    )
