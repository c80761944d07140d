"""FPN-CARAFE: Wang, Chen, Xu, Liu, Loy, Lin, "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019."""

from __future__ import annotations

from typing import Literal

from fpn_bench.graph import Conv, Edge, GraphBuilder, NeckGraph, Op, Reassemble, Resample, TransposedConv, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    ActivationOption,
    NormOption,
    activation_ops,
    begin,
    check_option,
    check_whole,
    conv_norm,
    extend,
)
from fpn_bench.zoo.registry import neck

UpModule = Literal["nearest", "bilinear", "deconv", "pixel_shuffle", "carafe"]
UP_MODULES: tuple[UpModule, ...] = ("nearest", "bilinear", "deconv", "pixel_shuffle", "carafe")


@neck
def fpn_carafe(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    up: UpModule = "carafe",
    reach: int = 2,
    compressed: int = 64,
    norm: NormOption = "none",
    activation: ActivationOption = "none",
    pre_activation: bool = False,
    separable: bool = False,
) -> NeckGraph:
    """FPN whose top-down path upsamples by content-aware reassembly (Wang et al. 2019, section 3), as in mmdet.

    A 1x1 compresses the coarser map, a 3x3 makes of it one filter for each pixel of the finer map, and each of those
    pixels is the sum of the coarser neighbourhood by the softmax of its filter. Levels above the backbone's are made
    before the top-down path and take part in it, by one fixed rule: a 3x3 stride 2 of the backbone's last map, then of
    the lateral before (norm and activation as behind the laterals); there is no option `extra`.

    Deviation: where a finer map has an odd side, neighbours beyond its last pixel count as zero, although the coarser
    map has them; mmdet makes the even side and cuts it.

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous.
        channels: width of every level (256 in the paper).
        up: ``"carafe"``; ``"nearest"`` and ``"bilinear"`` interpolation; ``"deconv"``: 3x3 transposed convolution;
            ``"pixel_shuffle"``: a 3x3 to four times the width, which is then spread over four pixels (Shi et al. 2016).
        reach: how many pixels away a neighbour may be (carafe only); 2 makes filters of 5x5.
        compressed: channels that the filters are made from (carafe only).
        norm: norm layer behind the laterals, the extra and the output convs.
        activation: behind each of these, or before it.
        pre_activation: activation, conv, norm; else conv, norm, activation.
        separable: output convs are depthwise separable.
    """
    check_option("up", up, UP_MODULES)
    check_whole("reach", reach)
    check_whole("compressed", compressed)
    b, used = begin(features, out_levels)
    act = activation_ops(activation)

    def block(kernel: int, stride: int = 1) -> tuple[Op, ...]:
        ops = conv_norm(channels, kernel, norm, stride=stride, separable=separable and kernel * stride == 3)
        return (*act, *ops) if pre_activation else (*ops, *act)

    lateral = {level: b.then(f"lateral{level}", input_name(level), *block(1)) for level in used}
    extend(b, lateral, out_levels[-1], block(3, stride=2), source=input_name(used[-1]), name="lateral")
    merged: dict[int, str] = {}
    above = ""
    for level in reversed(lateral):
        if above:
            above = b.add(f"top_down{level}", level, lateral[level], _upsampled(b, above, level, up, reach, compressed))
        else:
            above = lateral[level]
        merged[level] = above
    outputs = [b.then(f"P{level}", merged[level], *block(3)) for level in out_levels]
    return b.graph(outputs)


def _upsampled(b: GraphBuilder, source: str, level: int, up: UpModule, reach: int, compressed: int) -> Edge:
    """The map of a coarser level, one level finer."""
    channels = b.channels(source)
    if up == "deconv":
        return Edge(source, (TransposedConv(channels, 3),))
    if up == "pixel_shuffle":
        return Edge(source, (Conv(4 * channels), Resample("pixel_shuffle")))
    if up != "carafe":
        return Edge(source, (Resample(up),))
    kernel = 2 * reach + 1
    # Small at first: all of a neighbourhood weigh about alike.
    encoder = Conv(4 * kernel**2, gain=0.02)
    filters = Edge(source, (Conv(compressed, 1), encoder, Resample("pixel_shuffle")))
    spread = Edge(source, (Resample("nearest"),))
    return Edge(b.add(f"up{level}", level, spread, filters, merge=Reassemble(kernel, dilation=2)))
