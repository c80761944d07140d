"""Torch modules that necks are made of, each with the function that makes it of an operation of the graph."""

from fpn_bench.nn.convs import PositionalEncoding
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
from fpn_bench.nn.registry import BUILDERS, builds, make_layer
from fpn_bench.nn.resample import AdaptivePool, Downsample, PixelShuffle, StridedConv, Upsample, fit

__all__ = [
    "BUILDERS",
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
    "builds",
    "fit",
    "make_group_norm",
    "make_layer",
    "make_norm",
]
