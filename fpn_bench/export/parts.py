"""What exported files are made of beside the neck: copied into them, so nothing here may need more than torch.

What is read of other packages needs nothing else either, and is copied with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpn_bench.backbones.grid import to_grid
from fpn_bench.detection.detector import decode_boxes, decode_scores
from fpn_bench.nn.norms import make_group_norm


class Trunk(nn.Module):
    """timm's model as a source of maps, finest first.

    Args:
        model: cut down to the stages that are used.
        maps: (index among the model's maps, level, stride in pixels) of each, finest first.
        multiple: images are padded with zeros, at the bottom and the right, to multiples of this.
        square: and then to the longer of the two sides.
    """

    def __init__(
        self, model: nn.Module, maps: Sequence[tuple[int, int, float]], multiple: int = 1, square: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.maps = tuple(maps)
        self.multiple = multiple
        self.square = square

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] -> one [N, C, ~H / 2^level, ~W / 2^level] a level."""
        size = (images.shape[-2], images.shape[-1])
        below, right = ((-side) % self.multiple for side in size)
        if self.square:
            side = max(size[0] + below, size[1] + right)
            below, right = side - size[0], side - size[1]
        if self.multiple > 1 or self.square:
            images = F.pad(images, (0, right, 0, below))
        indices = sorted({index for index, _, _ in self.maps})
        found = self.model.forward_intermediates(  # type: ignore[operator]
            images, indices=indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        maps = dict(zip(indices, found, strict=True))
        padded = (images.shape[-2], images.shape[-1])
        return [self.placed(maps[index], size, padded, level, stride) for index, level, stride in self.maps]

    def placed(self, x: Tensor, size: tuple[int, int], padded: tuple[int, int], level: int, stride: float) -> Tensor:
        """A map of the padded image without what lies in the padding alone."""
        cells = 2**level
        return x[..., : (size[0] + cells - 1) // cells, : (size[1] + cells - 1) // cells]


class SampledTrunk(Trunk):
    """One whose maps do not lie on the grids of their levels: they are sampled there."""

    def placed(self, x: Tensor, size: tuple[int, int], padded: tuple[int, int], level: int, stride: float) -> Tensor:
        """A map of the padded image on the grid of its level."""
        return to_grid(x, size, padded, level, stride)


class Head(nn.Module):
    """The head of FCOS (Tian et al. 2019): two towers of convolutions, shared by all levels.

    Args:
        channels: of the maps.
        classes: that are scored, each by a sigmoid.
        convs: 3x3 convolutions in each tower.
        groups: of the group norms.
    """

    def __init__(self, channels: int, classes: int, convs: int, groups: int) -> None:
        super().__init__()

        def tower() -> nn.Sequential:
            blocks: list[nn.Module] = []
            for _ in range(convs):
                blocks += [nn.Conv2d(channels, channels, 3, padding=1), make_group_norm(groups, channels), nn.ReLU()]
            return nn.Sequential(*blocks)

        self.classification_head = nn.ModuleDict(
            {"conv": tower(), "cls_logits": nn.Conv2d(channels, classes, 3, padding=1)}
        )
        self.regression_head = nn.ModuleDict(
            {
                "conv": tower(),
                "bbox_reg": nn.Conv2d(channels, 4, 3, padding=1),
                "bbox_ctrness": nn.Conv2d(channels, 1, 3, padding=1),
            }
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, finest first -> logits [N, A, K], distances in strides [N, A, 4], centre-ness logits [N, A, 1].

        The A points are those of all maps, finest first, row by row.
        """
        logits, distances, centreness = [], [], []
        for x in maps:
            scored = self.classification_head["conv"](x)
            boxed = self.regression_head["conv"](x)
            logits.append(self.classification_head["cls_logits"](scored).flatten(2).transpose(1, 2))
            distances.append(self.regression_head["bbox_reg"](boxed).relu().flatten(2).transpose(1, 2))
            centreness.append(self.regression_head["bbox_ctrness"](boxed).flatten(2).transpose(1, 2))
        return torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(centreness, 1)


def decode(
    logits: Tensor,
    distances: Tensor,
    centreness: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Boxes and scores of the head's outputs.

    Args:
        logits, distances, centreness: what `Head` gave.
        sizes: (height, width) of the maps, finest first.
        strides: of the maps, in pixels.
        image_size: (height, width) of the network's input in pixels.

    Returns:
        boxes [N, A, 4] (x1 y1 x2 y2, pixels of the input, clipped to it) and scores [N, A, K].
    """
    points, steps = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        rows = torch.arange(height, device=logits.device, dtype=torch.float32) * stride
        columns = torch.arange(width, device=logits.device, dtype=torch.float32) * stride
        grid = torch.stack([columns[None, :] + 0 * rows[:, None], rows[:, None] + 0 * columns[None, :]], dim=-1)
        points.append(grid.reshape(-1, 2))
        steps.append(torch.full_like(grid, float(stride)).reshape(-1, 2))
    centre, step = torch.cat(points), torch.cat(steps)  # [A, 2]
    boxes = decode_boxes(distances.float(), centre, step).clamp(min=0)
    limits = [torch.as_tensor(side, device=boxes.device).to(boxes.dtype) for side in (image_size[1], image_size[0])]
    x, y = boxes[..., 0::2].minimum(limits[0]), boxes[..., 1::2].minimum(limits[1])
    boxes = torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)
    return boxes, decode_scores(logits, centreness)


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
        self.modulated = modulated
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[N, C, H, W] and [N, 2 or 3 * kernel**2 * groups, H, W] -> [N, C', H, W]."""
        x, offsets = maps
        kernel = self.weight.shape[-1]
        taps = kernel * kernel
        groups = offsets.shape[1] // ((3 if self.modulated else 2) * taps)
        height, width = x.shape[-2], x.shape[-1]
        rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
        columns = torch.arange(width, device=x.device, dtype=x.dtype)
        out = None
        for tap in range(taps):
            moved = []
            for group, part in enumerate(x.chunk(groups, dim=1)):
                k = group * taps + tap
                row = rows + offsets[:, 2 * k] + (tap // kernel - kernel // 2)  # [N, H, W]
                column = columns + offsets[:, 2 * k + 1] + (tap % kernel - kernel // 2)
                # grid_sample counts from -1 to 1, the outer borders of the map.
                grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
                sampled = F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
                if self.modulated:
                    mask = 2 * taps * groups + k
                    sampled = sampled * offsets[:, mask : mask + 1].sigmoid()
                moved.append(sampled)
            weight = self.weight[:, :, tap // kernel, tap % kernel][:, :, None, None]
            product = F.conv2d(torch.cat(moved, dim=1), weight)
            out = product if out is None else out + product
        assert out is not None
        return out if self.bias is None else out + self.bias[:, None, None]


class AdaptivePool(nn.Module):
    """Pooling into as many windows as the result has pixels, in operations that ONNX has for sizes not yet known.

    Args:
        kind: ``"max"`` or ``"avg"``.
        bins: cells a side of the result; 0 where the size is given.
    """

    def __init__(self, kind: str, bins: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.bins = bins

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """[N, C, H, W] -> [N, C, bins, bins] or [N, C, *size]."""
        height, width = (self.bins, self.bins) if size is None else size
        return self.along(self.along(x, height).transpose(2, 3), width).transpose(2, 3)

    def along(self, x: Tensor, cells: int) -> Tensor:
        """[N, C, H, W] -> [N, C, cells, W]."""
        side = x.shape[2]
        cell = torch.arange(cells, device=x.device)[:, None]
        first, behind = cell * side // cells, ((cell + 1) * side + cells - 1) // cells  # rows of each window
        if self.kind == "avg":
            row = torch.arange(side, device=x.device)
            inside = ((row >= first) & (row < behind)).to(x.dtype)  # [cells, H]
            return (inside / (behind - first).to(x.dtype)) @ x
        longest = (side + cells - 1) // cells + 1
        rows = torch.minimum(first + torch.arange(longest, device=x.device), behind - 1)  # the last one repeated
        return x[:, :, rows].amax(3)
