"""LC-PAN and CSP-PAN: Yu et al., "PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices", arXiv 2021."""

from __future__ import annotations

from typing import Literal

from fpn_bench.graph import Edge, NeckGraph, Op, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import CONCAT, GAINS, Unit, check_factor, concat_pan, csp_layer
from fpn_bench.zoo.parts import (
    ACTIVATIONS,
    ActivationOption,
    ExtraRule,
    NormOption,
    UpOption,
    begin,
    check_option,
    check_repeats,
    extend,
    finish,
)
from fpn_bench.zoo.registry import neck


@neck
def lc_pan(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    block: Literal["lc", "csp"] = "lc",
    depth: int = 1,
    expansion: float = 0.5,
    kernel: int = 5,
    up: UpOption = "nearest",
    separable: bool = True,
    norm: NormOption = "batch",
    activation: ActivationOption = "hard_swish",
    extra: ExtraRule | Literal["on_both"] = "on_both",
    extra_relu: bool = True,
) -> NeckGraph:
    """Light path aggregation (PP-PicoDet, section 2.2 and figure 2), PaddleDetection's `LCPAN` and `CSPPAN`.

    A 1x1 makes all maps equally wide; then the paths of `csp_pafpn` without further reduction, with depthwise
    convolutions of a large kernel. ``block="csp"`` is the paper's CSP-PAN; ``"lc"`` that of the improved PicoDet, whose
    blocks are LCNet's depthwise separable units. PicoDet-xs and -s have 96 channels, -m 128, -l 160.

    Deviations: any number of levels (three, and one extra, in the paper); the initial weights keep the variance of the
    maps through the chosen activation (a ReLU's in the code), because the paths are dozens of units long.

    Args:
        features: the backbone's features, as in `fpn`.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width.
        block: what fuses two concatenated maps: ``"lc"``, depthwise separable units of twice the width and one that
            comes back to it; ``"csp"``, a CSP layer.
        depth: units of twice the width, or bottlenecks a CSP layer.
        expansion: width of a CSP layer's two paths, in `channels`.
        kernel: of the depthwise convolutions.
        up: interpolation of the top-down path.
        separable: convs of CSP layers and of stride 2 are a depthwise and a pointwise one; LCNet's units always are.
        norm: norm layer behind every convolution.
        activation: behind every norm.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`, or ``"on_both"``: the sum of a stride-2 conv of
            the top lateral and one of the top output; later levels by a stride-2 conv of the one before.
        extra_relu: ReLU before the second and later extra convs (not with ``"on_both"``).
    """
    check_option("block", block, ("lc", "csp"))
    check_repeats(depth, "depth")
    check_factor("expansion", expansion)
    check_option("activation", activation, ACTIVATIONS)
    unit = Unit(norm, activation, gain=GAINS[activation])
    b, used = begin(features, out_levels)
    maps = {level: b.then(f"lateral{level}", input_name(level), *unit(channels)) for level in used}

    def conv(channels: int, stride: int = 1) -> tuple[Op, ...]:
        if separable:
            return unit.depthwise(channels, channels, kernel, stride=stride)
        return unit(channels, kernel, stride=stride)

    def bottleneck(name: str, source: str) -> str:
        inner = b.channels(source)
        return b.then(name, source, *unit(inner), *conv(inner))

    def fuse(name: str, level: int, inputs: tuple[str | Edge, ...]) -> str:
        if block == "csp":
            return csp_layer(b, name, level, inputs, channels, unit, bottleneck, depth=depth, expansion=expansion)
        ops = depth * unit.depthwise(2 * channels, 2 * channels, kernel) + unit.depthwise(
            2 * channels, channels, kernel
        )
        return b.add(name, level, *inputs, merge=CONCAT, ops=ops)

    step = conv(channels, stride=2)
    outputs, lateral = concat_pan(
        b, maps, out_levels[-1], up=up, reduce=lambda level: (), down=lambda level: step, fuse=fuse
    )
    outs = {level: b.then(f"P{level}", x) for level, x in outputs.items()}
    above = used[-1] + 1
    if extra == "on_both" and above <= out_levels[-1]:
        outs[above] = b.add(f"P{above}", above, Edge(lateral, step), Edge(outs[used[-1]], step))
        extend(b, outs, out_levels[-1], step, name="P")
    return finish(
        b, outs, out_levels, "on_output" if extra == "on_both" else extra, channels, lateral, relu=extra_relu, norm=norm
    )
