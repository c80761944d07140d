"""PAFPN: Liu, Qi, Qin, Shi, Jia, "Path Aggregation Network for Instance Segmentation", CVPR 2018."""

from __future__ import annotations

from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    DownOption,
    ExtraRule,
    MergeOption,
    NormOption,
    UpOption,
    begin,
    bottom_up,
    conv_norm,
    down_ops,
    finish,
    laterals,
    merge_ops,
    top_down,
)
from fpn_bench.zoo.registry import neck


@neck
def pafpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    merge: MergeOption = "sum",
    up: UpOption = "nearest",
    down: DownOption = "conv",
    norm: NormOption = "none",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
    extra_norm: bool = True,
) -> NeckGraph:
    """Path aggregation network (Liu et al. 2018, section 3.1 and figure 1), in mmdet's order of operations.

    FPN first, with a 3x3 on every level; then a bottom-up path over those: each level adds the stride-2 3x3 of the
    running sum below it; every level but the finest gets a second 3x3. The next step reads the sum before that 3x3.

    Args:
        features: the backbone's features, as in `fpn`.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level (256 in the paper).
        merge: how two maps become one, in both paths.
        up: interpolation of the top-down path.
        down: of the bottom-up path; the paper's is the stride-2 3x3 convolution.
        norm: norm layer behind every convolution, which then has no bias.
        separable: 3x3 convs of stride 1 are depthwise separable.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
        extra_norm: the extra convs have the norm layer too (mmdet's do; torchvision's and detectron2's have none).
    """
    b, used = begin(features, out_levels)
    kind, mix = merge_ops(merge, channels)
    output = conv_norm(channels, 3, norm, separable=separable)
    merged = top_down(b, laterals(b, used, channels, norm), "top_down", up, kind, mix)
    kept = [level for level in used if level <= out_levels[-1]]
    finest = kept[0]
    fpn = {level: b.then(f"P{level}" if level == finest else f"fpn{level}", merged[level], *output) for level in kept}
    outputs = bottom_up(b, fpn, "bottom_up", down_ops(down, channels, norm), kind, mix)
    outputs |= {level: b.then(f"P{level}", outputs[level], *output) for level in kept[1:]}
    return finish(
        b, outputs, out_levels, extra, channels, merged[used[-1]], relu=extra_relu, norm=norm if extra_norm else "none"
    )
