"""The baselines of the FPN paper's own ablation (Lin et al. 2017, tables 1 and 2): a pyramid without one half."""

from __future__ import annotations

from fpn_bench.graph import Edge, NeckGraph, Node, Resample
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    ExtraRule,
    NormOption,
    UpOption,
    check_option,
    conv_norm,
    extra_levels,
    laterals,
    within,
)
from fpn_bench.zoo.registry import neck


@neck
def channel_mapper(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    output_conv: bool = True,
    norm: NormOption = "none",
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Laterals only: every level sees its own backbone map and no other (rows (d), "bottom-up pyramid").

    A 1x1 lateral and a 3x3 output conv a level, as FPN without its top-down path. With ``output_conv=False,
    norm="group", extra="on_input"`` it is mmdet's `ChannelMapper` of the DETR family.

    Args:
        features: the backbone's features.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level.
        output_conv: the 3x3 behind each lateral.
        norm: norm layer behind every convolution.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.extra_levels`.
        extra_relu: ReLU before the second and later extra convs.
    """
    used, extras = within(features, out_levels)
    nodes = laterals(used, channels, norm)
    ops = conv_norm(channels, 3, norm) if output_conv else ()
    kept = [spec.level for spec in used if spec.level <= out_levels[-1]]
    nodes += [Node(f"P{level}", level, (Edge(f"lateral{level}"),), ops=ops) for level in kept]
    return _finish(features, nodes, used[-1].level, out_levels, extras, extra, extra_relu, channels, norm)


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
) -> NeckGraph:
    """Top level only: every level is made of the coarsest backbone map (rows (e), "top-down pyramid, w/o lateral").

    The 1x1-reduced top map, upsampled level by level, with a 3x3 output conv each.

    Args:
        features: the backbone's features; only the coarsest is read.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level.
        up: interpolation.
        norm: norm layer behind every convolution.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.extra_levels`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("up", up, UPS)
    used, extras = within(features, out_levels)
    top = used[-1].level
    nodes = laterals(used[-1:], channels, norm)
    source = f"lateral{top}"
    for level in range(top, out_levels[0] - 1, -1):
        if level < top:
            nodes.append(Node(f"up{level}", level, (Edge(source, (Resample(up),)),)))
            source = f"up{level}"
        if level <= out_levels[-1]:
            nodes.append(Node(f"P{level}", level, (Edge(source),), ops=conv_norm(channels, 3, norm)))
    return _finish(features, nodes, top, out_levels, extras, extra, extra_relu, channels, norm)


def _finish(
    features: tuple[FeatureSpec, ...],
    nodes: list[Node],
    top: int,
    out_levels: tuple[int, ...],
    extras: tuple[int, ...],
    extra: ExtraRule,
    extra_relu: bool,
    channels: int,
    norm: NormOption,
) -> NeckGraph:
    nodes += extra_levels(
        extras,
        extra,
        channels,
        top_input=f"C{top}",
        top_lateral=f"lateral{top}",
        top_output=f"P{top}",
        relu_before=extra_relu,
        norm=norm,
    )
    return NeckGraph(features, tuple(nodes), tuple(f"P{level}" for level in out_levels))
