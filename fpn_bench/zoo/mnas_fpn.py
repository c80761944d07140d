"""MnasFPN: Chen et al., "MnasFPN: Learning Latency-Aware Pyramid Architecture for Object Detection", CVPR 2020."""

from __future__ import annotations

from fpn_bench.errors import InputError
from fpn_bench.graph import Conv, Edge, NeckGraph, Op, Resample, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    ActivationOption,
    NormOption,
    UpOption,
    activation_ops,
    begin,
    check_option,
    check_repeats,
    extend,
    norm_ops,
)
from fpn_bench.zoo.registry import neck

_WIDTH = 48
"""Of the paper, to which its expansions belong."""


@neck
def mnas_fpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    repeats: int = 4,
    norm: NormOption = "batch",
    activation: ActivationOption = "relu6",
    separable: bool = True,
    up: UpOption = "nearest",
    residual: bool = True,
) -> NeckGraph:
    """The cell that MnasFPN's search found for mobile detectors (Chen et al. 2020, sections 3.1 to 3.3, figure 5).

    Each edge expands its map by a 1x1 conv, before up-sampling or after down-sampling ("size-dependent ordering"); a
    node is the sum, ReLU6, a separable conv back to the width. One inner node at the second level feeds every output.
    It follows the authors' cell in TensorFlow's object detection API; the paper has width 48 and levels P3 to P6.

    Deviations: the cell was found for four levels. With others the coarsest level has the last node's sizes and all
    between it and the second those of P5's; expansions grow with the width. Up-sampling goes to the map's size.

    Args:
        features: the backbone's features; those coarser than the last output are not read.
        out_levels: contiguous, at least two. Those above the backbone's are made before the first cell: 3x3 stride-2
            max-pool, then a 1x1 conv.
        channels: width.
        repeats: cells.
        norm: norm layer behind every conv.
        activation: behind each sum.
        separable: the nodes' convs, behind that, are depthwise separable.
        up: interpolation towards finer levels.
        residual: a cell's input is added to its output where their widths are equal.
    """
    check_repeats(repeats)
    check_option("up", up, UPS)
    if len(out_levels) < 2:
        raise InputError(f"expected at least two out_levels, whose neighbours mnas_fpn merges, got {out_levels}")
    b, used = begin(features, out_levels)
    normed = norm_ops(norm, eps=0.01, momentum=0.01)
    bias = not normed
    pool = Resample("max_pool", "3")
    maps = {level: input_name(level) for level in used if level <= out_levels[-1]}
    extend(b, maps, out_levels[-1], (pool, Conv(channels, 1, bias=bias), *normed))

    def block(name: str, level: int, sources: list[str], kernel: int, expansion: int) -> str:
        expand: tuple[Op, ...] = (Conv(max(1, round(channels * expansion / _WIDTH)), 1, bias=bias), *normed)
        edges = [Edge(source, _ordered(level - b.level(source), expand, Resample(up), pool)) for source in sources]
        after = (*activation_ops(activation), Conv(channels, kernel, bias=bias, separable=separable), *normed)
        return b.add(name, level, *edges, ops=after)

    first, second, last = out_levels[0], out_levels[1], out_levels[-1]
    for cell in range(1, repeats + 1):
        coarser = [maps[second + 1]] if second < last else []
        inner = block(f"cell{cell}_inner", second, [maps[second], *coarser], 3, 256)
        outputs = {first: block(f"cell{cell}_out{first}", first, [maps[first], inner], 3, 128)}
        outputs[second] = block(f"cell{cell}_out{second}", second, [outputs[first], inner], 3, 128)
        for level in out_levels[2:]:
            sizes = (3, 96) if level == last else (5, 128)
            outputs[level] = block(f"cell{cell}_out{level}", level, [inner, maps[last]], *sizes)
        for level, name in outputs.items():
            if residual and b.channels(maps[level]) == channels:
                outputs[level] = b.add(f"cell{cell}_residual{level}", level, name, maps[level])
        maps = outputs
    return b.graph(maps[level] for level in out_levels)


def _ordered(step: int, expand: tuple[Op, ...], up: Resample, down: Resample) -> tuple[Op, ...]:
    """The 1x1 conv where the map is smaller: before up-sampling, after down-sampling."""
    if step > 0:
        return (down, *expand)
    return (*expand, up) if step < 0 else expand
