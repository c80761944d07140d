"""Semantic FPN: Kirillov, Girshick, He, Dollár, "Panoptic Feature Pyramid Networks", CVPR 2019."""

from __future__ import annotations

from fpn_bench.graph import Edge, Merge, NeckGraph, Resample
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import check_factor, scaled
from fpn_bench.zoo.parts import (
    UPS,
    ActivationOption,
    NormOption,
    PoolOption,
    UpOption,
    begin,
    check_option,
    conv_norm,
    laterals,
    pooled,
    top_down,
)
from fpn_bench.zoo.registry import neck


@neck
def semantic_fpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    expansion: float = 2.0,
    up: UpOption = "bilinear",
    norm: NormOption = "group",
    activation: ActivationOption = "relu",
    separable: bool = False,
    pool: PoolOption = "avg_pool",
) -> NeckGraph:
    """FPN and the semantic segmentation branch of Panoptic FPN (Kirillov et al. 2019, section 3.1 and figure 3).

    Each level of a plain FPN goes through as many steps of [3x3 conv, norm, activation, upsampling by 2] as it takes to
    reach the finest level, which has the conv alone; the results are summed. It follows detectron2's `SemSegFPNHead`
    over its FPN, without the classifier.

    Deviations: the branch returns one map, the finest. Where coarser levels are asked for, they are pooled from it and
    each has a 3x3 conv behind, as in HRFPN (Sun et al. 2019). A group of the norm has at least 8 channels: of 128 there
    are 16 groups, where detectron2 has 32; the weights and costs are the same.

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous; the first is the branch's own (2 in the paper), the others are pooled from it.
        channels: width of the branch (128 in the paper).
        expansion: the FPN has ``channels * expansion`` channels (256 in the paper).
        up: the branch's upsampling; FPN's is nearest.
        norm: norm layer behind the branch's and the pooled levels' convolutions, which then have no bias; FPN has none.
        activation: behind the branch's convolutions.
        separable: all 3x3 convs are depthwise separable.
        pool: how the coarser levels are pooled, by tiling windows.
    """
    check_factor("expansion", expansion)
    check_option("up", up, UPS)
    wide = scaled(channels, expansion)
    b, used = begin(features, out_levels)
    merged = top_down(b, laterals(b, used, wide, "none"), "merge", "nearest", Merge("sum"))
    step = conv_norm(channels, 3, norm, separable=separable, activation=activation)
    finest = used[0]
    steps = []
    for level in used:
        x = b.then(f"fpn{level}", merged[level], *conv_norm(wide, 3, "none", separable=separable))
        if level == finest:
            x = b.then(f"step{level}_{level}", x, *step)
        for k in range(level - 1, finest - 1, -1):
            x = b.add(f"step{level}_{k}", k, Edge(x, (*step, Resample(up))))
        steps.append(x)
    fused = b.add(f"P{finest}", finest, *steps)
    output = conv_norm(channels, 3, norm, separable=separable)
    return b.graph([fused, *pooled(b, fused, out_levels[1:], pool, output)])
