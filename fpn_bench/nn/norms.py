"""Norm layers. Each gives what torch's own gives, and runs where torch's refuses: on one value a channel or group."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fpn_bench.graph import Norm
from fpn_bench.graph.kinds import NormKind
from fpn_bench.nn.registry import builds

CHANNELS_A_GROUP = 8
"""Fewest channels of a neck's groups, and of those on maps of one pixel; what is narrower has one group."""


def make_norm(kind: NormKind, channels: int, *, eps: float, momentum: float, groups: int) -> nn.Module:
    """A batch norm, a layer norm, or a group norm of as many groups as divide the channels.

    There are up to `groups` groups, of at least eight channels.
    """
    if kind == "batch":
        return BatchNorm(channels, eps=eps, momentum=momentum)
    if kind == "layer":
        return PixelLayerNorm(channels, eps=eps)
    return make_group_norm(min(groups, most_groups(channels)), channels, eps)


def make_group_norm(groups: int, channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """A group norm that runs on maps of every size, for necks and heads alike.

    A group of several channels always holds several values, so torch's own layer serves. With one channel a group, a
    map of one pixel leaves a single value in each, which torch refuses in eval mode too; see `ChannelNorm`.

    Args:
        groups: of the channels; where they do not divide these, the next smaller number that does.
        channels: of the map.
        eps: added to the variance.
    """
    groups = max(n for n in range(1, groups + 1) if channels % n == 0)
    return (nn.GroupNorm if groups < channels else ChannelNorm)(groups, channels, eps=eps)


def most_groups(channels: int) -> int:
    """The most groups of at least `CHANNELS_A_GROUP` channels; 1 where there are fewer channels."""
    most = max(1, channels // CHANNELS_A_GROUP)
    return max(n for n in range(1, most + 1) if channels % n == 0)


class ChannelNorm(nn.GroupNorm):
    """A group norm of one channel a group, which takes groups of at least eight channels on maps of one pixel.

    The single value of such a group is its own mean: every image would give the bias. How many groups there are is
    decided by the map's size as it comes, because one head serves maps of all sizes, and by nothing else: neither by
    the batch, so that an image gives the same alone and among others, nor by the mode. The weights belong to channels
    and fit any number of groups. A map of one channel and one pixel has nothing to be normalised by and gives the bias.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        one_pixel = x.shape[-2] * x.shape[-1] == 1
        if torch.onnx.is_in_onnx_export():  # sizes are recorded, not known: both go into the file
            by_map, by_channels = self.normalised(x, self.num_groups), self.normalised(x, self.fewer_groups)
            return torch.where(torch.as_tensor(one_pixel, device=x.device), by_channels, by_map)
        return self.normalised(x, self.fewer_groups if one_pixel else self.num_groups)

    @property
    def fewer_groups(self) -> int:
        """Groups for a map of one pixel."""
        return most_groups(self.num_channels)

    def normalised(self, x: torch.Tensor, groups: int) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W], without the check by which torch's functional form refuses single values."""
        return torch.group_norm(x, groups, self.weight, self.bias, self.eps)


class BatchNorm(nn.BatchNorm2d):
    """A batch norm that, in training too, takes the running statistics where a channel has one value in all.

    One image whose map is one pixel has no spread: torch refuses it in training.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        if self.training and x.numel() == self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class PixelLayerNorm(nn.LayerNorm):
    """A layer norm over the channels of each pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # movedim has no right form in ONNX


@builds(Norm)
def _norm(op: Norm, channels: int, levels: int) -> nn.Module:
    return make_norm(op.kind, channels, eps=op.eps, momentum=op.momentum, groups=op.groups)
