"""UPerNet: Xiao, Liu, Zhou, Jiang, Sun, "Unified Perceptual Parsing for Scene Understanding", ECCV 2018."""

from __future__ import annotations

from collections.abc import Sequence

from fpn_bench.errors import InputError
from fpn_bench.graph import AdaptivePool, Edge, Merge, NeckGraph, Resample, ResizeToLevel, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    ActivationOption,
    MergeOption,
    NormOption,
    PoolOption,
    UpOption,
    begin,
    check_option,
    conv_norm,
    laterals,
    merge_ops,
    pooled,
    top_down,
)
from fpn_bench.zoo.registry import neck


@neck
def upernet(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    bins: Sequence[int] = (1, 2, 3, 6),
    merge: MergeOption = "sum",
    up: UpOption = "bilinear",
    norm: NormOption = "batch",
    activation: ActivationOption = "relu",
    separable: bool = False,
    pool: PoolOption = "avg_pool",
) -> NeckGraph:
    """UPerNet's feature fusion (Xiao et al. 2018, section 3), as in mmsegmentation's `UPerHead`.

    The top map and its averages over 1x1, 2x2, 3x3 and 6x6 cells are concatenated (pyramid pooling module, Zhao et al.
    2017) and mixed by a 3x3 conv; FPN's top-down path follows; all levels, those below the top behind a 3x3, are
    upsampled to the finest, concatenated and mixed by a 3x3 conv. Norm and activation stand behind every convolution.

    Deviations: the head makes one map, the finest. Where coarser levels are asked for, they are pooled from it and each
    has a 3x3 conv behind, as in HRFPN (Sun et al. 2019).

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous; the first is the fused map (2 in the paper), the others are pooled from it.
        channels: width of every level (512 in mmsegmentation).
        bins: cells a side of the pyramid pooling module; none leaves the top map alone.
        merge: how a level and its upsampled neighbour become one in the top-down path.
        up: interpolation, of the top-down path and of the fusion.
        norm: norm layer behind every convolution, which then has no bias.
        activation: behind every norm; not behind the pooled levels' convs.
        separable: 3x3 convs are depthwise separable.
        pool: how the coarser levels are pooled, by tiling windows.
    """
    check_option("up", up, UPS)
    if not isinstance(bins, (list, tuple)) or any(type(n) is not int or n < 1 for n in bins):
        raise InputError(f"expected bins to be a list of whole numbers of at least 1, e.g. [1, 2, 3, 6], got {bins!r}")
    concat = Merge("concat")
    b, used = begin(features, out_levels)
    reduce = conv_norm(channels, 1, norm, activation=activation)
    output = conv_norm(channels, 3, norm, separable=separable, activation=activation)
    *lower, top = used
    x = input_name(top)
    branches = [Edge(x, (AdaptivePool(n), *reduce, ResizeToLevel())) for n in bins]
    maps = laterals(b, tuple(lower), channels, norm, activation)
    maps[top] = b.add(f"pyramid{top}", top, x, *branches, merge=concat, ops=output)
    kind, mix = merge_ops(merge, channels)
    merged = top_down(b, maps, "merge", up, kind, mix)
    outputs = {level: b.then(f"fpn{level}", merged[level], *output) for level in lower} | {top: merged[top]}
    finest = used[0]
    edges = (Edge(name, (Resample(up),) if level > finest else ()) for level, name in outputs.items())
    fused = b.add(f"P{finest}", finest, *edges, merge=concat, ops=output)
    coarser = pooled(b, fused, out_levels[1:], pool, conv_norm(channels, 3, norm, separable=separable))
    return b.graph([fused, *coarser])
