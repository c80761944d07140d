"""FPG: Chen, Cao, Loy, Lin, Feichtenhofer, "Feature Pyramid Grids", arXiv 2020."""

from __future__ import annotations

from fpn_bench.graph import Edge, NeckGraph, Op, Resample
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    ActivationOption,
    ExtraRule,
    NormOption,
    UpOption,
    activation_ops,
    begin,
    check_option,
    check_repeats,
    conv_norm,
    extend_by_rule,
    finish,
    laterals,
)
from fpn_bench.zoo.registry import neck


@neck
def fpg(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    repeats: int = 9,
    triangular: bool = True,
    across_down: bool = True,
    across_skip: bool = True,
    up: UpOption = "nearest",
    norm: NormOption = "batch",
    activation: ActivationOption = "relu",
    separable: bool = False,
    extra: ExtraRule = "subsample",
) -> NeckGraph:
    """Feature pyramid grids (Chen et al. 2020, section 3 and figure 2), in mmdet's form.

    Parallel bottom-up pathways over the same levels. A node of a pathway sums: the 3x3 stride 2 of the node below it
    in its pathway (same-up), the 1x1 of its level in the pathway before (across-same), the upsampled 3x3 of the level
    above there (across-down) and the 1x1 of its lateral (across-skip). Each of these is activation, conv, norm. An
    activation and a 3x3 follow the last pathway.

    Levels made above the backbone's take part: mmdet's Faster R-CNN form has ``extra="subsample"``, its RetinaNet form
    ``extra="on_lateral"``.

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous.
        channels: width of every level (256, or 128, in the paper).
        repeats: pathways.
        triangular: the coarsest level begins in the first pathway, each finer one a pathway later; until then its
            lateral is passed on. All take part in the last pathway, however few there are.
        across_down: the across-down connections.
        across_skip: the across-skip connections.
        up: interpolation of the across-down connections, before their conv.
        norm: norm layer behind every convolution of the pathways.
        activation: before every convolution of the pathways and of the outputs.
        separable: 3x3 convs are depthwise separable.
        extra: how levels above the backbone's are made, each from the one before, by convs without norm:
            ``"subsample"``: every second pixel of the top lateral, here and in the next two the bare 1x1 before any
            pathway; ``"max_pool"``: overlapping 3x3 stride 2 of it; ``"on_lateral"``: 3x3 stride-2 conv of it;
            ``"on_input"``: of the backbone's last map; ``"on_output"``: of the top output, where alone they take no
            part.
    """
    check_repeats(repeats)
    check_option("up", up, UPS)
    b, used = begin(features, out_levels)
    first = laterals(b, used, channels, "none")
    if extra != "on_output":
        extend_by_rule(b, first, out_levels[-1], extra, channels, first[used[-1]], relu=False, name="lateral")

    def transform(kernel: int, stride: int = 1) -> tuple[Op, ...]:
        return (
            *activation_ops(activation),
            *conv_norm(channels, kernel, norm, stride=stride, separable=separable and kernel > 1),
        )

    levels = sorted(first)
    current = first
    for pathway in range(repeats):
        before, current = current, {}
        for i, level in enumerate(levels):
            begins = min(len(levels) - 1 - i, repeats - 1) if triangular else 0
            if pathway < begins:
                current[level] = before[level]
                continue
            edges = [Edge(before[level], transform(1))]
            if i > 0:
                edges.append(Edge(current[levels[i - 1]], transform(3, stride=2)))
            if across_down and i + 1 < len(levels):
                edges.append(Edge(before[levels[i + 1]], (Resample(up), *transform(3))))
            if across_skip:
                edges.append(Edge(first[level], transform(1)))
            current[level] = b.add(f"path{pathway + 1}_{level}", level, *edges)
    output = (*activation_ops(activation), *conv_norm(channels, 3, "none", separable=separable))
    outputs = {level: b.then(f"P{level}", name, *output) for level, name in current.items()}
    return finish(b, outputs, out_levels, extra, channels, current[levels[-1]], relu=False)
