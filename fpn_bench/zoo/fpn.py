"""FPN: Lin, Dollár, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection", CVPR 2017."""

from __future__ import annotations

from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    DownOption,
    ExtraRule,
    MergeOption,
    NormOption,
    UpOption,
    begin,
    bottom_up,
    check_repeats,
    conv_norm,
    down_ops,
    finish,
    laterals,
    merge_ops,
    top_down,
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
    extra_norm: bool = True,
    lateral_norm: bool = True,
) -> NeckGraph:
    """Feature pyramid network (Lin et al. 2017, section 3 and figure 3).

    The coarsest map is reduced by a 1x1 conv; each step upsamples, merges with the 1x1-reduced map of the same level,
    and a 3x3 conv makes the output. At its defaults it is `torchvision.ops.FeaturePyramidNetwork`; with a norm,
    torchvision's and detectron2's have ``extra_norm=False``, mmdet's `no_norm_on_lateral` is ``lateral_norm=False``.

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
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
        extra_norm: the extra convs have the norm layer too (mmdet's do; torchvision's and detectron2's have none).
        lateral_norm: the laterals have the norm layer too.
    """
    check_repeats(repeats)
    b, used = begin(features, out_levels)
    current = merged = laterals(b, used, channels, norm if lateral_norm else "none")
    kind, mix = merge_ops(merge, channels)
    output = conv_norm(channels, 3, norm, separable=separable)
    for turn in range(1, repeats + 1):
        if turn % 2 == 1:
            merged = top_down(b, current, f"merge{turn}_", up, kind, mix)
        else:
            merged = bottom_up(b, current, f"merge{turn}_", down_ops(down, channels, norm), kind, mix)
        if turn < repeats:
            current = {level: b.then(f"out{turn}_{level}", name, *output) for level, name in merged.items()}
    outputs = {level: b.then(f"P{level}", merged[level], *output) for level in used if level <= out_levels[-1]}
    return finish(
        b, outputs, out_levels, extra, channels, merged[used[-1]], relu=extra_relu, norm=norm if extra_norm else "none"
    )
