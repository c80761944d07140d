"""Torch modules that necks are made of: convolutions, resampling, merges. They know nothing of graphs."""

from fpn_bench.nn.convs import (
    PositionalEncoding,
    fit,
    make_activation,
    make_conv,
    make_transposed_conv,
)
from fpn_bench.nn.merge import (
    Attention,
    Concat,
    DeformableConv,
    Max,
    Mean,
    Product,
    Reassemble,
    SpatialSoftmax,
    Sum,
    WeightedSum,
)
from fpn_bench.nn.norms import BatchNorm, ChannelNorm, PixelLayerNorm, make_group_norm, make_norm
from fpn_bench.nn.resample import AdaptivePool, Downsample, PixelShuffle, StridedConv, Upsample

__all__ = [
    "AdaptivePool",
    "Attention",
    "BatchNorm",
    "ChannelNorm",
    "Concat",
    "DeformableConv",
    "Downsample",
    "Max",
    "Mean",
    "PixelLayerNorm",
    "PixelShuffle",
    "PositionalEncoding",
    "Product",
    "Reassemble",
    "SpatialSoftmax",
    "StridedConv",
    "Sum",
    "Upsample",
    "WeightedSum",
    "fit",
    "make_activation",
    "make_conv",
    "make_group_norm",
    "make_norm",
    "make_transposed_conv",
]
