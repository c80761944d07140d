"""Bringing a map to another pyramid level. Sizes are given, never computed from strides."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fpn_bench.nn.convs import fit

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
