"""FaPN: Huang, Lu, Cheng, He, "FaPN: Feature-aligned Pyramid Network for Dense Image Prediction", ICCV 2021."""

from __future__ import annotations

import math

from fpn_bench.graph import (
    Activation,
    AdaptivePool,
    Conv,
    DeformableConv,
    Edge,
    GraphBuilder,
    Merge,
    NeckGraph,
    Resample,
    ResizeToLevel,
    input_name,
)
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    ExtraRule,
    NormOption,
    UpOption,
    begin,
    check_option,
    conv_norm,
    finish,
)
from fpn_bench.zoo.registry import neck

GROUPS = 8


@neck
def fapn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    select: bool = True,
    align: bool = True,
    up: UpOption = "bilinear",
    norm: NormOption = "none",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Feature-aligned pyramid network (Huang et al. 2021, section 3), as in EMI-Group/FaPN.

    FPN's top-down path, in which each lateral first weighs its channels by their means (feature selection module),
    and each upsampled map is aligned with the lateral by a modulated deformable 3x3 conv whose offsets both of them
    give (feature alignment module). The top level is its lateral, the others have a 3x3 output conv.

    Deviations: the conv that makes the offsets starts small, not at zero, so that gradients reach all weights from the
    first step; there are fewer than 8 groups of offsets where 8 do not divide `channels`.

    Args:
        features: the backbone's features. All from the finest output level up take part in the top-down path, also
            those coarser than the last output.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level (256 in the paper).
        select: feature selection; without it laterals are plain 1x1 convs (the paper's ablation).
        align: feature alignment; without it the upsampled map is added as it is.
        up: interpolation before the alignment.
        norm: norm layer behind the top lateral, the offsets' 1x1 and the output convs; the first and last then have no
            bias. The selection modules have neither norm nor bias; extra convs have no norm, as in detectron2.
        separable: output convs are depthwise separable.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("up", up, UPS)
    b, used = begin(features, out_levels)
    top = used[-1]
    merged = {top: b.then(f"lateral{top}", input_name(top), *conv_norm(channels, 1, norm))}
    for level in reversed(used[:-1]):
        lateral = (
            _select(b, level, channels)
            if select
            else b.then(f"lateral{level}", input_name(level), *conv_norm(channels, 1, norm))
        )
        upsampled = b.add(f"up{level}", level, Edge(merged[level + 1], (Resample(up),)))
        aligned = _align(b, level, lateral, upsampled, channels, norm) if align else upsampled
        merged[level] = b.add(f"merge{level}", level, aligned, lateral)
    output = conv_norm(channels, 3, norm, separable=separable)
    outputs = {
        level: b.then(f"P{level}", merged[level], *(output if level < top else ()))
        for level in used
        if level <= out_levels[-1]
    }
    return finish(b, outputs, out_levels, extra, channels, merged[top], relu=extra_relu)


def _select(b: GraphBuilder, level: int, channels: int) -> str:
    """Feature selection module: 1x1(x + x sigmoid(1x1(mean of x)))."""
    x = input_name(level)
    gate = (AdaptivePool(1), Conv(b.channels(x), 1, bias=False), Activation("sigmoid"), ResizeToLevel())
    weighed = b.add(f"weighed{level}", level, x, Edge(x, gate), merge=Merge("product"))
    return b.add(f"lateral{level}", level, x, weighed, ops=(Conv(channels, 1, bias=False),))


def _align(b: GraphBuilder, level: int, lateral: str, upsampled: str, channels: int, norm: NormOption) -> str:
    """Feature alignment module: the upsampled map, deformed by what it and the lateral say together."""
    twice = b.add(f"twice{level}", level, upsampled, upsampled)
    _, *normed = conv_norm(channels, 1, norm)
    both = b.add(
        f"both{level}", level, lateral, twice, merge=Merge("concat"), ops=(Conv(channels, 1, bias=False), *normed)
    )
    deform = DeformableConv(channels)
    offsets = b.then(f"offsets{level}", both, Conv(deform.offset_channels * math.gcd(GROUPS, channels), gain=0.01))
    return b.add(f"aligned{level}", level, upsampled, offsets, merge=deform, ops=(Activation("relu"),))
