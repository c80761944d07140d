"""Torch modules that necks are made of: convolutions, resampling, merges. They know nothing of graphs."""

from fpn_bench.layers.convs import fit, make_activation, make_conv, make_norm
from fpn_bench.layers.merge import make_merge
from fpn_bench.layers.resample import Downsample, StridedConv, Upsample

__all__ = ["Downsample", "StridedConv", "Upsample", "fit", "make_activation", "make_conv", "make_merge", "make_norm"]
