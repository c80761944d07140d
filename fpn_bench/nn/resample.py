"""Bringing a map to another pyramid level. Sizes are given, never computed from strides."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fpn_bench.graph import path_ops
from fpn_bench.nn.registry import builds, make_layer

Size = tuple[int, int]


class Upsample(nn.Module):
    """Interpolation to a given size.

    Args:
        mode: ``"nearest"`` or ``"bilinear"`` (corners not aligned).
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.align_corners = None if mode == "nearest" else False

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, *size]."""
        return F.interpolate(x, size=size, mode=self.mode, align_corners=self.align_corners)

    def expression(self, x: str, size: str) -> str:
        """The same as Python text."""
        corners = ", align_corners=False" if self.mode == "bilinear" else ""
        return f'F.interpolate({x}, size={size}, mode="{self.mode}"{corners})'

    def extra_repr(self) -> str:
        """What `print` shows."""
        return self.mode


class PixelShuffle(nn.Module):
    """Channels become pixels: `factor`**2 of them one of `factor` times the side (Shi et al. 2016), then fitted.

    Args:
        factor: output pixels an input pixel, along a side.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        """[N, C, H, W] -> [N, C / factor**2, *size]."""
        return fit(F.pixel_shuffle(x, self.factor), size)


class AdaptivePool(nn.Module):
    """Pooling into as many windows as the result has pixels.

    Args:
        kind: ``"max"`` or ``"avg"``.
        bins: cells a side of the result; 0 where the size is given.
    """

    def __init__(self, kind: str, bins: int = 0) -> None:
        super().__init__()
        self.pool = F.adaptive_max_pool2d if kind == "max" else F.adaptive_avg_pool2d
        self.bins = bins

    def forward(self, x: torch.Tensor, size: Size | None = None) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, bins, bins] or [N, C, *size]."""
        return self.pool(x, (self.bins, self.bins) if size is None else size)

    def expression(self, x: str, size: str) -> str:
        """The same as Python text."""
        return f"F.{self.pool.__name__}({x}, {size or self.bins})"


class Downsample(nn.Module):
    """Pooling by a stride, cut or repeated to the given size where rounding differs by a row or column.

    Windows that tile may reach past the far border (ceil_mode), so that no row of the map is dropped when its side is
    no multiple of the stride; what lies outside does not count.

    Args:
        kind: ``"max_pool"``, ``"avg_pool"``, or ``"subsample"`` (every stride-th pixel).
        stride: input pixels an output pixel.
        kernel: side of the windows: the stride, so that they tile the map, or an odd number, centred on every
            stride-th pixel.
    """

    def __init__(self, kind: str, stride: int, kernel: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.stride = stride
        self.kernel = kernel or stride
        self.padding = 0 if self.kernel == stride else self.kernel // 2

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, *size]."""
        tiles = self.padding == 0
        if self.kind == "subsample":
            x = x[..., :: self.stride, :: self.stride]
        elif self.kind == "max_pool":
            x = F.max_pool2d(x, self.kernel, self.stride, self.padding, ceil_mode=tiles)
        else:
            x = F.avg_pool2d(x, self.kernel, self.stride, self.padding, ceil_mode=tiles, count_include_pad=False)
        return fit(x, size)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.kind}, kernel={self.kernel}, stride={self.stride}"


class StridedConv(nn.Module):
    """A strided (or transposed) convolution whose map is cut or repeated to the given size where rounding differs.

    Args:
        conv: the convolution.
        tile: its stride when its kernel tiles the map (kernel == stride), else 1: the map is then filled up with zeros
            to a multiple of it, so that no row is dropped.
    """

    def __init__(self, conv: nn.Module, tile: int = 1) -> None:
        super().__init__()
        self.conv = conv
        self.tile = tile

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        """[N, C, H, W] -> [N, C', *size]."""
        if self.tile > 1:
            x = F.pad(x, (0, -x.shape[-1] % self.tile, 0, -x.shape[-2] % self.tile))
        return fit(self.conv(x), size)


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


@builds(path_ops.Resample)
def _resample(op: path_ops.Resample, channels: int, levels: int) -> nn.Module:
    if op.kind == "pixel_shuffle":
        return make_layer(PixelShuffle, 2**-levels)
    if op.kind in ("adaptive_max_pool", "adaptive_avg_pool"):
        return make_layer(AdaptivePool, op.kind.split("_")[1])
    if op.direction < 0:
        return make_layer(Upsample, op.kind)
    stride = 2**levels
    kernel = {"stride": stride, "stride+1": stride + 1, "3": 3}[op.kernel]
    return make_layer(Downsample, op.kind, stride, *([kernel] if kernel != stride else []))


@builds(path_ops.AdaptivePool)
def _adaptive_pool(op: path_ops.AdaptivePool, channels: int, levels: int) -> nn.Module:
    return make_layer(AdaptivePool, op.kind, op.bins)


@builds(path_ops.ResizeToLevel)
def _resize_to_level(op: path_ops.ResizeToLevel, channels: int, levels: int) -> nn.Module:
    return make_layer(Upsample, op.kind)
