"""CSPNeXt-PAFPN: Lyu et al., "RTMDet: An Empirical Study of Designing Real-Time Object Detectors", arXiv 2022."""

from __future__ import annotations

from fpn_bench.graph import NeckGraph, Op, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import Unit, check_factor, concat_pan, csp_layer, scaled
from fpn_bench.zoo.parts import ActivationOption, ExtraRule, NormOption, UpOption, begin, check_repeats, finish
from fpn_bench.zoo.registry import neck


@neck
def cspnext_pafpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    widen: float = 1.0,
    depth: int = 1,
    expansion: float = 0.5,
    kernel: int = 5,
    up: UpOption = "nearest",
    separable: bool = False,
    norm: NormOption = "batch",
    activation: ActivationOption = "silu",
    out_conv: bool = True,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """The paths of `csp_pafpn` with large-kernel blocks (RTMDet, section 3.2), mmdet's `CSPNeXtPAFPN`.

    A block is a 3x3 convolution, then a 5x5 depthwise and a pointwise one, without shortcut; a 3x3 makes each output.
    The channel attention of RTMDet's backbone layers is not in its neck.

    Inner widths are those of the features. RTMDet-tiny: features of 96, 192, 384 channels, ``depth=1``; -s: 128 ...,
    1; -m: 192 ..., 2; -l: 256 ..., 3; `channels` is the finest feature's. Deviation: any number of levels (three in the
    paper).

    Args:
        features: the backbone's features, as in `fpn`.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every output.
        widen: inner width of a level, in channels of its feature.
        depth: blocks a CSP layer.
        expansion: width of a CSP layer's two paths, in its output channels.
        kernel: of the depthwise convolutions.
        up: interpolation of the top-down path.
        separable: 3x3 convs are a depthwise and a pointwise one.
        norm: norm layer behind every convolution (batch: eps 1e-3, momentum 0.03).
        activation: behind every norm.
        out_conv: a 3x3 to `channels` behind each output; else outputs have their levels' inner widths.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_repeats(depth, "depth")
    check_factor("widen", widen)
    check_factor("expansion", expansion)
    unit = Unit(norm, activation, eps=1e-3, momentum=0.03)
    b, used = begin(features, out_levels)
    width = {level: scaled(b.channels(input_name(level)), widen) for level in used}

    def conv3(channels_in: int, channels: int, stride: int = 1) -> tuple[Op, ...]:
        if separable:
            return unit.depthwise(channels_in, channels, 3, stride=stride)
        return unit(channels, 3, stride=stride)

    def block(name: str, source: str) -> str:
        inner = b.channels(source)
        return b.then(name, source, *conv3(inner, inner), *unit.depthwise(inner, inner, kernel))

    outputs, lateral = concat_pan(
        b,
        {level: input_name(level) for level in used},
        out_levels[-1],
        up=up,
        reduce=lambda level: unit(width[level - 1]),
        down=lambda level: conv3(width[level], width[level], stride=2),
        fuse=lambda name, level, inputs: csp_layer(
            b, name, level, inputs, width[level], unit, block, depth=depth, expansion=expansion
        ),
    )
    outs = {
        level: b.then(f"P{level}", x, *(conv3(b.channels(x), channels) if out_conv else ()))
        for level, x in outputs.items()
    }
    return finish(b, outs, out_levels, extra, channels, lateral, relu=extra_relu, norm=norm)
