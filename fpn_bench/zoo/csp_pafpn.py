"""CSP-PAFPN: Ge, Liu, Wang, Li, Sun, "YOLOX: Exceeding YOLO Series in 2021", arXiv 2107.08430, 2021."""

from __future__ import annotations

from fpn_bench.graph import NeckGraph, Op, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import Unit, check_factor, concat_pan, csp_layer, scaled
from fpn_bench.zoo.parts import ActivationOption, ExtraRule, NormOption, UpOption, begin, check_repeats, finish
from fpn_bench.zoo.registry import neck


@neck
def csp_pafpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    widen: float = 1.0,
    depth: int = 1,
    expansion: float = 0.5,
    up: UpOption = "nearest",
    separable: bool = False,
    norm: NormOption = "batch",
    activation: ActivationOption = "silu",
    out_conv: bool = True,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Path aggregation by concatenation and CSP layers (YOLOX, section 2; the neck of YOLOv5), mmdet's `YOLOXPAFPN`.

    Top-down, each map is reduced by a 1x1 to the next finer level's width, upsampled, concatenated with that level's
    feature and fused by a CSP layer; bottom-up, a stride-2 3x3 of the level below is concatenated with the reduced map
    and fused again. The bottlenecks (1x1, 3x3) have no shortcut.

    Inner widths are those of the features. YOLOX-s: features of 128, 256, 512 channels, ``depth=1``; -m: 192 ..., 2;
    -l: 256 ..., 3. Deviation: any number of levels (three in the paper).

    Args:
        features: the backbone's features, as in `fpn`.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every output.
        widen: inner width of a level, in channels of its feature.
        depth: bottlenecks a CSP layer.
        expansion: width of a CSP layer's two paths, in its output channels.
        up: interpolation of the top-down path.
        separable: 3x3 convs are a depthwise and a pointwise one (YOLOX-nano).
        norm: norm layer behind every convolution (batch: eps 1e-3, momentum 0.03).
        activation: behind every norm.
        out_conv: a 1x1 to `channels` behind each output, as in mmdet; else outputs have their levels' inner widths.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_repeats(depth, "depth")
    check_factor("widen", widen)
    check_factor("expansion", expansion)
    unit = Unit(norm, activation, eps=1e-3, momentum=0.03)
    b, used = begin(features, out_levels)
    width = {level: scaled(b.channels(input_name(level)), widen) for level in used}

    def conv3(channels: int, stride: int = 1) -> tuple[Op, ...]:
        if separable:
            return unit.depthwise(channels, channels, 3, stride=stride)
        return unit(channels, 3, stride=stride)

    def bottleneck(name: str, source: str) -> str:
        inner = b.channels(source)
        return b.then(name, source, *unit(inner), *conv3(inner))

    outputs, lateral = concat_pan(
        b,
        {level: input_name(level) for level in used},
        out_levels[-1],
        up=up,
        reduce=lambda level: unit(width[level - 1]),
        down=lambda level: conv3(width[level], stride=2),
        fuse=lambda name, level, inputs: csp_layer(
            b, name, level, inputs, width[level], unit, bottleneck, depth=depth, expansion=expansion
        ),
    )
    outs = {level: b.then(f"P{level}", x, *(unit(channels) if out_conv else ())) for level, x in outputs.items()}
    return finish(b, outs, out_levels, extra, channels, lateral, relu=extra_relu, norm=norm)
