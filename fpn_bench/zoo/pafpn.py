"""PAFPN: Liu, Qi, Qin, Shi, Jia, "Path Aggregation Network for Instance Segmentation", CVPR 2018."""

from __future__ import annotations

from fpn_bench.graph import Edge, NeckGraph, Node, Resample
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    DownOption,
    ExtraRule,
    MergeOption,
    NormOption,
    UpOption,
    check_option,
    conv_norm,
    down_ops,
    extra_levels,
    laterals,
    merge_ops,
    within,
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
        extra: rule for extra levels, see `fpn_bench.zoo.parts.extra_levels`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("up", up, UPS)
    used, extras = within(features, out_levels)
    nodes = laterals(used, channels, norm)
    kind, mix = merge_ops(merge, channels)
    output = conv_norm(channels, 3, norm, separable=separable)
    levels = [spec.level for spec in used]
    running: str | None = None
    top_down: dict[int, str] = {}
    for level in reversed(levels):
        name = f"lateral{level}"
        if running is not None:
            name = f"top_down{level}"
            nodes.append(Node(name, level, (Edge(f"lateral{level}"), Edge(running, (Resample(up),))), kind, mix))
        top_down[level] = running = name
    kept = [level for level in levels if level <= out_levels[-1]]
    finest = kept[0]
    for level in kept:
        name = f"P{level}" if level == finest else f"fpn{level}"
        nodes.append(Node(name, level, (Edge(top_down[level]),), ops=output))
    running = f"P{finest}"
    for level in kept[1:]:
        name = f"bottom_up{level}"
        edges = (Edge(f"fpn{level}"), Edge(running, down_ops(down, channels, norm)))
        nodes.append(Node(name, level, edges, kind, mix))
        nodes.append(Node(f"P{level}", level, (Edge(name),), ops=output))
        running = name
    top = levels[-1]
    nodes += extra_levels(
        extras,
        extra,
        channels,
        top_input=f"C{top}",
        top_lateral=top_down[top],
        top_output=f"P{top}",
        relu_before=extra_relu,
        norm=norm,
    )
    return NeckGraph(features, tuple(nodes), tuple(f"P{level}" for level in out_levels))
