"""What exported torchvision detectors are made of: copied into the file, beside `fpn_bench.export.parts`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


class Pyramid(nn.Module):
    """Trunk and neck as what torchvision's detectors call a backbone.

    Args:
        trunk: images to maps.
        standardise: of these maps.
        neck: maps to a pyramid.
        out_channels: of its maps.
        frozen: the trunk is not trained, nor are the statistics of its batch norms.
    """

    def __init__(
        self, trunk: nn.Module, standardise: nn.Module, neck: nn.Module, out_channels: int, frozen: bool
    ) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(not frozen)
        self.standardise = standardise
        self.neck = neck
        self.out_channels = out_channels
        self.frozen = frozen

    def train(self, mode: bool = True) -> Pyramid:
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Normalised images [N, 3, H, W] -> [N, out_channels, H_k, W_k] a level, finest first, named "0", "1" ..."""
        maps = self.neck(self.standardise(self.trunk(images)))
        return OrderedDict((str(k), x) for k, x in enumerate(maps))


class Stretch(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Images are stretched to one size, as in the detector's training, and normalised.

    Args:
        size: (height, width) in pixels.
        mean, std: of RGB in 0..1.
        mode: of interpolation, which is antialiased.
    """

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], mode: str) -> None:
        super().__init__(min(size), max(size), list(mean), list(std), size_divisible=1, fixed_size=(size[1], size[0]))
        self.size = size
        self.mode = mode

    def normalize(self, image: Tensor) -> Tensor:
        """Nothing: images are resized first, and interpolation may overshoot 0..1."""
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """An image [3, H, W] in 0..1, and its boxes, at `size`."""
        before = [image.shape[-2], image.shape[-1]]
        smooth = self.mode in ("bilinear", "bicubic")
        for size in ((before[0], self.size[1]), self.size):  # as PIL does it: along rows, then columns, in 8 bits
            if image.shape[-2:] != size:
                image = F.interpolate(image[None], size=size, mode=self.mode, antialias=smooth)[0]
                image = (255 * image).round().clamp(0, 255) / 255
        image = super().normalize(image)
        if target is not None:
            target = {**target, "boxes": resize_boxes(target["boxes"], before, list(self.size))}
        return image, target


class PyramidAnchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors at multiples of the levels' strides; torchvision's own divides the image's size by the map's.

    Args:
        sizes: of the anchors of each level, in pixels.
        ratios: height to width, of each size.
        strides: of the levels, in pixels.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """One [A, 4] an image."""
        sizes = [[x.shape[-2], x.shape[-1]] for x in feature_maps]
        first = feature_maps[0]
        strides = [[torch.tensor(s, device=first.device)] * 2 for s in self.strides]
        self.set_cell_anchors(first.dtype, first.device)
        anchors = torch.cat(self.grid_anchors(sizes, strides))
        return [anchors for _ in image_list.image_sizes]
