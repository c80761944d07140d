"""HRFPN: Sun, Zhao, Jiang et al., "High-Resolution Representations for Labeling Pixels and Regions", arXiv 2019."""

from __future__ import annotations

from fpn_bench.graph import Edge, Merge, NeckGraph, Resample, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import UPS, NormOption, PoolOption, UpOption, begin, check_option, conv_norm, pooled
from fpn_bench.zoo.registry import neck


@neck
def hrfpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    up: UpOption = "bilinear",
    pool: PoolOption = "avg_pool",
    norm: NormOption = "none",
    separable: bool = False,
    share_conv: bool = False,
) -> NeckGraph:
    """High-resolution feature pyramid, HRNetV2p (Sun et al. 2019, section 3 and figure 4 (c)), as in mmdet.

    All maps are brought to the finest level and concatenated, a 1x1 mixes them, and that one map is pooled to each
    output level, however coarse; a 3x3 follows.

    Deviation: a pooled map has the size of its level, rounded up; mmdet's pools round down.

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous; any may lie above the backbone's.
        channels: width of every level (256 in the paper).
        up: interpolation to the finest level.
        pool: towards coarser levels, of windows that tile the map.
        norm: norm layer behind every convolution, which then has no bias.
        separable: output convs are depthwise separable.
        share_conv: one output conv (and norm) for all levels.
    """
    check_option("up", up, UPS)
    b, used = begin(features, out_levels)
    finest = out_levels[0]

    gathered = (Edge(input_name(level), (Resample(up),) if level > finest else ()) for level in used)
    fused = b.add("fused", finest, *gathered, merge=Merge("concat"), ops=conv_norm(channels, 1, norm))
    output = conv_norm(channels, 3, norm, separable=separable)
    return b.graph(pooled(b, fused, out_levels, pool, output, shared="output" if share_conv else ""))
