"""Making one map of several. Every module takes a list of [N, C, H, W] of one size."""

from __future__ import annotations

import torch
from torch import nn


class Sum(nn.Module):
    """x_1 + x_2 + ..., in order."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        total = maps[0]
        for x in maps[1:]:
            total = total + x
        return total


class Mean(Sum):
    """The sum divided by the number of maps."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        return super().forward(maps) / len(maps)


class Max(nn.Module):
    """The element-wise maximum."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        largest = maps[0]
        for x in maps[1:]:
            largest = torch.maximum(largest, x)
        return largest


class Concat(nn.Module):
    """Along channels, in order."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C_i, H, W] -> [N, sum C_i, H, W]."""
        return torch.cat(maps, dim=1)


class WeightedSum(nn.Module):
    """A sum with one learned scalar a map, all ones at the start.

    Args:
        inputs: number of maps.
        softmax: weights are the softmax of the scalars; else relu(w_i) / (sum_j relu(w_j) + eps), EfficientDet's "fast
            normalized fusion" (Tan et al. 2020, section 3.3).
        eps: in the denominator of the latter.
    """

    def __init__(self, inputs: int, *, softmax: bool = False, eps: float = 1e-4) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.softmax = softmax
        self.eps = eps

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """List of [N, C, H, W] -> [N, C, H, W]."""
        if self.softmax:
            weights = self.weights.softmax(0)
        else:
            positive = self.weights.relu()
            weights = positive / (positive.sum() + self.eps)
        weights = weights.to(maps[0].dtype)
        total = weights[0] * maps[0]
        for i in range(1, len(maps)):
            total = torch.addcmul(total, maps[i], weights[i])
        return total


def make_merge(kind: str, inputs: int, eps: float) -> nn.Module:
    """The merge of `inputs` maps by the name it has in a graph."""
    if kind in ("fast_normalised", "softmax"):
        return WeightedSum(inputs, softmax=kind == "softmax", eps=eps)
    return {"sum": Sum, "mean": Mean, "max": Max, "concat": Concat}[kind]()
