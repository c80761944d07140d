"""Putting maps on the grid of their level: pixel (i, j) of level k stands for the 2^k x 2^k pixels of the image at
(i, j) * 2^k. Maps of other strides (a patch size of 14), and maps that end before the image does because their
convolutions have no padding, are sampled there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fpn_bench.pyramid import ImageSize, map_size


def is_on_grid(size: ImageSize, image_size: ImageSize, level: int, stride: float) -> bool:
    """Whether a map of `size` and `stride` stands on the grid of `level` of an image of `image_size`.

    Its sides may be rounded up or down: either way its first pixel is the image's first 2^k pixels.
    """
    return stride == 2**level and all(
        n in (side >> level, -(-side >> level)) for n, side in zip(size, image_size, strict=True)
    )


def to_grid(x: Tensor, image_size: ImageSize, padded: ImageSize, level: int, stride: float) -> Tensor:
    """A map on the grid of its level.

    A map that stands on it already is only cropped to what the image covers. Any other is sampled bilinearly, taken to
    have the image's centre at its own; beyond its border it is continued.

    Args:
        x: [N, C, h, w], a map of the padded image.
        image_size: (height, width) of the image in pixels.
        padded: (height, width) that it was padded to, at the bottom and the right.
        level: of the grid.
        stride: pixels of the image a pixel of `x`.

    Returns:
        [N, C, ceil(height / 2^level), ceil(width / 2^level)]; an unpadded map that was rounded down stays as it is.
    """
    size = (x.shape[-2], x.shape[-1])
    if is_on_grid(size, padded, level, stride):
        if padded == image_size:
            return x
        height, width = map_size(image_size, level)
        return x[..., :height, :width]
    target = map_size(image_size, level)
    # affine_grid runs over -1..1, the outer borders of the grid wanted; grid_sample counts from the map's own. The
    # first grid begins at the image's first pixel, the map at half the padded image less half its own extent.
    extent = [n * 2**level for n in target]
    own = [n * stride for n in size]
    scale = [e / o for e, o in zip(extent, own, strict=True)]
    shift = [(e - p) / o for e, p, o in zip(extent, padded, own, strict=True)]
    affine = torch.tensor([[scale[1], 0.0, shift[1]], [0.0, scale[0], shift[0]]], device=x.device, dtype=x.dtype)
    grid = F.affine_grid(affine.expand(x.shape[0], 2, 3), [x.shape[0], 1, *target], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
