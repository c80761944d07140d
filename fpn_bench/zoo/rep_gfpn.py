"""RepGFPN: Xu et al., "DAMO-YOLO: A Report on Real-Time Object Detection Design", arXiv 2211.15444, 2022."""

from __future__ import annotations

import math

from fpn_bench.graph import Edge, NeckGraph, Op, Resample, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import CONCAT, Unit, check_factor, rep_block, residual, scaled
from fpn_bench.zoo.parts import (
    UPS,
    ActivationOption,
    ExtraRule,
    NormOption,
    UpOption,
    begin,
    check_option,
    check_repeats,
    finish,
)
from fpn_bench.zoo.registry import neck


@neck
def rep_gfpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    widen: float = 1.0,
    out_widen: float = 1.0,
    depth: int = 3,
    expansion: float = 0.75,
    deploy: bool = False,
    up: UpOption = "nearest",
    separable: bool = False,
    norm: NormOption = "batch",
    activation: ActivationOption = "relu",
    out_conv: bool = True,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Efficient RepGFPN (DAMO-YOLO, section 2.2 and figure 3), the authors' `GiraffeNeckV2`.

    Top-down, each level concatenates its feature, a stride-2 3x3 of the finer feature and the upsampled coarser map;
    bottom-up, its top-down map and stride-2 3x3s of both maps of the level below (at the finest they are one). A stage
    fuses them: 1x1s to two halves, blocks on one of them, and a 1x1 of the other half and all that the blocks gave. A
    block adds to its input a re-parameterised 3x3 and a 3x3.

    DAMO-YOLO-S: features of 128, 256, 512 channels; -T: 96 ..., ``expansion=1.0, out_widen=2/3``; -M: 128 ...,
    ``depth=4, expansion=1.0, activation="silu"``; -L: the same, ``depth=6``. The nano models: ``separable=True,
    depth=2, activation="silu"``.

    Deviations: any number of levels (three in the paper); without ``out_conv`` it is the paper's.

    Args:
        features: the backbone's features, as in `fpn`.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every output.
        widen: width of a level's top-down map, in channels of its feature.
        out_widen: the same of its bottom-up map, and of the finest one.
        depth: blocks a stage.
        expansion: width between a block's two convolutions, in its own.
        deploy: the re-parameterised convs are the single ones that the trained ones fold into.
        up: interpolation of the top-down path.
        separable: stride-2 convs are a depthwise and a pointwise one, and blocks inverted bottlenecks: 1x1 to three
            times the width, 5x5 depthwise, 1x1.
        norm: norm layer behind every convolution (batch: eps 1e-3, momentum 0.03).
        activation: behind every norm.
        out_conv: a 1x1 to `channels` behind each output; else outputs have their levels' widths, as in the paper.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("up", up, UPS)
    check_repeats(depth, "depth")
    for option, value in (("widen", widen), ("out_widen", out_widen), ("expansion", expansion)):
        check_factor(option, value)
    unit = Unit(norm, activation, eps=1e-3, momentum=0.03)
    b, used = begin(features, out_levels)
    finest, top = used[0], used[-1]

    def down(source: str) -> Edge:
        width = b.channels(source)
        ops = unit.depthwise(width, width, 3, stride=2) if separable else unit(width, 3, stride=2)
        return Edge(source, ops)

    def block(name: str, source: str) -> str:
        width = b.channels(source)
        if separable:
            wide = _round_to_8(3 * width)
            ops: tuple[Op, ...] = unit(wide) + unit(wide, 5, groups=wide) + unit(width, active=False)
            return residual(b, name, source, ops)
        hidden = rep_block(b, f"{name}_rep", source, scaled(width, expansion), unit, deploy=deploy)
        return b.add(name, b.level(source), source, Edge(hidden, unit(width, 3)))

    def stage(name: str, level: int, inputs: list[str | Edge], factor: float) -> str:
        width = scaled(b.channels(input_name(level)), factor)
        first = max(1, width // 2)
        x = b.add(f"{name}_in", level, *inputs, merge=CONCAT)
        parts = [b.then(f"{name}_short", x, *unit(first)), b.then(f"{name}_main", x, *unit(max(1, width - first)))]
        for i in range(1, depth + 1):
            parts.append(block(f"{name}_block{i}", parts[-1]))
        return b.add(name, level, parts[0], *parts[2:], merge=CONCAT, ops=unit(width))

    top_down: dict[int, str] = {}
    for level in reversed(used):
        inputs: list[str | Edge] = [input_name(level)]
        if level > finest:
            inputs.append(down(input_name(level - 1)))
        if level < top:
            inputs.append(Edge(top_down[level + 1], (Resample(up),)))
        top_down[level] = stage(f"top_down{level}", level, inputs, widen if level > finest else out_widen)
    outputs = {finest: top_down[finest]}
    for level in used[1:]:
        if level <= out_levels[-1]:
            below = dict.fromkeys((top_down[level - 1], outputs[level - 1]))
            inputs = [top_down[level], *(down(x) for x in below)]
            outputs[level] = stage(f"bottom_up{level}", level, inputs, out_widen)
    outs = {level: b.then(f"P{level}", x, *(unit(channels) if out_conv else ())) for level, x in outputs.items()}
    return finish(b, outs, out_levels, extra, channels, top_down[top], relu=extra_relu, norm=norm)


def _round_to_8(channels: int) -> int:
    """The nearest multiple of 8, but not more than a tenth below (the mobile networks' rule)."""
    rounded = max(8, math.floor(channels / 8 + 0.5) * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
