"""FPN: Lin, Dollár, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection", CVPR 2017."""

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
    check_repeats,
    conv_norm,
    down_ops,
    extra_levels,
    laterals,
    merge_ops,
    within,
)
from fpn_bench.zoo.registry import neck


@neck
def fpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    merge: MergeOption = "sum",
    repeats: int = 1,
    up: UpOption = "nearest",
    down: DownOption = "max_pool",
    norm: NormOption = "none",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Feature pyramid network (Lin et al. 2017, section 3 and figure 3).

    The coarsest map is reduced by a 1x1 conv; each step upsamples, merges with the 1x1-reduced map of the same level,
    and a 3x3 conv makes the output. At its defaults it is `torchvision.ops.FeaturePyramidNetwork`.

    Deviations, all off by default: merges other than the sum, norm layers, separable output convs, and `repeats`:
    pass 2, 4, ... runs bottom-up and pass 3, 5, ... top-down again over the outputs of the pass before.

    Args:
        features: the backbone's features. All from the finest output level up take part in the top-down path, also
            those coarser than the last output.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level (256 in the paper).
        merge: how a level and its upsampled (downsampled) neighbour become one.
        repeats: passes, each with its own output convs.
        up: interpolation towards finer levels, to the finer map's exact size.
        down: towards coarser levels in the bottom-up passes; pools are 3x3 stride 2.
        norm: norm layer behind every convolution, which then has no bias.
        separable: output convs are depthwise separable.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.extra_levels`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("up", up, UPS)
    check_repeats(repeats)
    used, extras = within(features, out_levels)
    nodes = laterals(used, channels, norm)
    current = {node.level: node.name for node in nodes}
    last_merged = current
    kind, mix = merge_ops(merge, channels)
    output = conv_norm(channels, 3, norm, separable=separable)
    for turn in range(1, repeats + 1):
        is_last = turn == repeats
        top_down = turn % 2 == 1
        step = (Resample(up),) if top_down else down_ops(down, channels, norm)
        merged: dict[int, str] = {}
        neighbour: str | None = None
        for level in sorted(current, reverse=top_down):
            name = current[level]
            if neighbour is not None:
                name = f"merge{turn}_{level}"
                edges = (Edge(current[level]), Edge(neighbour, step))
                nodes.append(Node(name, level, edges, kind, mix))
            merged[level] = neighbour = name
        last_merged = merged
        current = {}
        for level, name in sorted(merged.items()):
            if is_last and level > out_levels[-1]:
                continue
            current[level] = f"P{level}" if is_last else f"out{turn}_{level}"
            nodes.append(Node(current[level], level, (Edge(name),), ops=output))
    top = used[-1].level
    nodes += extra_levels(
        extras,
        extra,
        channels,
        top_input=f"C{top}",
        top_lateral=last_merged[top],
        top_output=current.get(top, ""),
        relu_before=extra_relu,
        norm=norm,
    )
    return NeckGraph(features, tuple(nodes), tuple(f"P{level}" for level in out_levels))
