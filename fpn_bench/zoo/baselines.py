"""The baselines of the FPN paper's own ablation (Lin et al. 2017, tables 1 and 2): a pyramid without one half."""

from __future__ import annotations

from fpn_bench.graph import Edge, NeckGraph, Resample
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import UPS, ExtraRule, NormOption, UpOption, begin, check_option, conv_norm, finish, laterals
from fpn_bench.zoo.registry import neck


@neck
def channel_mapper(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    kernel: int = 1,
    output_conv: bool = True,
    norm: NormOption = "none",
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
    extra_norm: bool = True,
) -> NeckGraph:
    """Laterals only: every level sees its own backbone map and no other (rows (d), "bottom-up pyramid").

    A 1x1 lateral and a 3x3 output conv a level, as FPN without its top-down path. With ``output_conv=False,
    norm="group", extra="on_input", extra_relu=False`` it is mmdet's `ChannelMapper` of the DETR family.

    Args:
        features: the backbone's features.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level.
        kernel: of the laterals, 1 in FPN and in the DETR family's configurations; 3 is mmdet's default.
        output_conv: the 3x3 behind each lateral.
        norm: norm layer behind every convolution.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
        extra_norm: the extra convs have the norm layer too (mmdet's do; torchvision's and detectron2's have none).
    """
    b, used = begin(features, out_levels)
    reduced = laterals(b, used, channels, norm, kernel=kernel)
    ops = conv_norm(channels, 3, norm) if output_conv else ()
    outputs = {level: b.then(f"P{level}", reduced[level], *ops) for level in used if level <= out_levels[-1]}
    return finish(
        b, outputs, out_levels, extra, channels, reduced[used[-1]], relu=extra_relu, norm=norm if extra_norm else "none"
    )


@neck
def top_only(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    up: UpOption = "nearest",
    norm: NormOption = "none",
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
    extra_norm: bool = True,
) -> NeckGraph:
    """Top level only: every level is made of the coarsest backbone map (rows (e), "top-down pyramid, w/o lateral").

    The 1x1-reduced top map, upsampled level by level, with a 3x3 output conv each.

    Args:
        features: the backbone's features; only the coarsest is read.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level.
        up: interpolation.
        norm: norm layer behind every convolution.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
        extra_norm: the extra convs have the norm layer too (mmdet's do; torchvision's and detectron2's have none).
    """
    check_option("up", up, UPS)
    b, used = begin(features, out_levels)
    top = used[-1]
    lateral = source = laterals(b, used[-1:], channels, norm)[top]
    outputs = {}
    for level in range(top, out_levels[0] - 1, -1):
        if level < top:
            source = b.add(f"up{level}", level, Edge(source, (Resample(up),)))
        if level <= out_levels[-1]:
            outputs[level] = b.then(f"P{level}", source, *conv_norm(channels, 3, norm))
    return finish(
        b, outputs, out_levels, extra, channels, lateral, relu=extra_relu, norm=norm if extra_norm else "none"
    )
