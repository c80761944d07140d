"""The kinds that operations list in their fields: every value that a graph may be written with, in one place."""

from __future__ import annotations

from typing import Literal

UpKind = Literal["nearest", "bilinear", "pixel_shuffle"]
DownKind = Literal["max_pool", "avg_pool", "subsample", "adaptive_max_pool", "adaptive_avg_pool"]
PoolWindow = Literal["stride", "stride+1", "3"]
PoolKind = Literal["avg", "max"]
InterpolationKind = Literal["nearest", "bilinear"]
NormKind = Literal["batch", "group", "layer"]
ActivationKind = Literal["relu", "relu6", "silu", "leaky_relu", "gelu", "hard_swish", "sigmoid"]
MergeKind = Literal["sum", "mean", "max", "product", "weighted", "fast_normalised", "softmax", "concat"]
