"""U-Net: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015."""

from __future__ import annotations

from typing import Literal

from fpn_bench.graph import Edge, Merge, NeckGraph, Op, Resample, TransposedConv, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    ActivationOption,
    ExtraRule,
    NormOption,
    UpOption,
    begin,
    check_option,
    check_repeats,
    conv_norm,
    finish,
)
from fpn_bench.zoo.registry import neck


@neck
def unet(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    up: UpOption | Literal["transposed"] = "transposed",
    depth: int = 2,
    norm: NormOption = "none",
    activation: ActivationOption = "relu",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """The decoder of U-Net (Ronneberger et al. 2015, section 2 and figure 1), from which FPN differs by its sums.

    The backbone is the contracting path. Two 3x3 convs stand at the bottom of the U; each step up takes the map through
    a 2x2 transposed convolution, concatenates it behind the backbone's map as it is, and two more 3x3 convs follow.
    What each step makes is an output.

    Deviations: every level has the same width, where the paper halves it at each step up, and the convolutions are
    padded, so that no map has to be cropped.

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level.
        up: ``"transposed"``: 2x2 stride 2, as in the paper; or the interpolation instead.
        depth: 3x3 convs a level.
        norm: norm layer behind each of them, which then has no bias (later U-Nets have batch norm).
        activation: behind each of them.
        separable: they are depthwise separable.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`; ``"on_lateral"`` is ``"on_output"`` here.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("up", up, (*UPS, "transposed"))
    check_repeats(depth, "depth")
    b, used = begin(features, out_levels)
    step: Op = TransposedConv(channels) if up == "transposed" else Resample(up)
    convs = conv_norm(channels, 3, norm, separable=separable, activation=activation) * depth
    outputs: dict[int, str] = {}
    for level in reversed(used):
        edges = [Edge(input_name(level))]
        if outputs:
            edges.append(Edge(outputs[level + 1], (step,)))
        outputs[level] = b.add(f"P{level}", level, *edges, merge=Merge("concat"), ops=convs)
    top = outputs[used[-1]]
    return finish(
        b,
        {level: name for level, name in outputs.items() if level <= out_levels[-1]},
        out_levels,
        extra,
        channels,
        top,
        relu=extra_relu,
        norm=norm,
    )
