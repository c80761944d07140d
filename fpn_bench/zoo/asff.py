"""ASFF: Liu, Huang, Wang, "Learning Spatial Fusion for Single-Shot Object Detection", arXiv 2019."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fpn_bench.errors import InputError
from fpn_bench.graph import Activation, Conv, Edge, Merge, NeckGraph, Op, Resample, SpatialSoftmax, input_name
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
    check_whole,
    conv_norm,
    finish,
)
from fpn_bench.zoo.registry import neck

InterOption = Literal["equal", "growing"]
INTERS: tuple[InterOption, ...] = ("equal", "growing")


@neck
def asff(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    inter: InterOption = "equal",
    widths: Sequence[int] = (),
    compressed: int = 16,
    up: UpOption = "nearest",
    norm: NormOption = "batch",
    activation: ActivationOption = "leaky_relu",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Adaptively spatial feature fusion (Liu et al. 2019, section 3.2 and figure 2), after the authors' code.

    Every level takes the maps of all levels, resized, and sums them with weights that differ from pixel to pixel: each
    map is compressed by a 1x1, these are concatenated, a 1x1 makes one logit a map, and the softmax of those weighs.
    A 3x3 follows. Towards finer levels a 1x1 (where the widths differ) and an interpolation resize a map; to the next
    coarser one a 3x3 stride 2; to those above it, a 3x3 max-pool before that.

    Deviations: the authors' maps come from the convolutions of YOLOv3's neck, here from 1x1 laterals; the authors have
    three levels, here there may be any number (a single one is not fused); outputs of equal width by default. The
    paper's own: 256 channels, ``inter="growing"``, ``widths=[256, 512, 1024]``.

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level.
        inter: width that a level works in: ``"equal"``: `channels`; ``"growing"``: `channels` at the two finest levels
            and double that of the level below from there on, as the authors' 256, 256, 512.
        widths: of the outputs, finest first, one for each level that is in both features and outputs; empty: all
            `channels`.
        compressed: channels that the logits are made from, a map (16; the authors take 8 to save memory).
        up: interpolation towards finer levels.
        norm: norm layer behind every convolution but that of the logits.
        activation: behind that; ``"leaky_relu"`` has slope 0.1 here.
        separable: 3x3 convs are depthwise separable.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("inter", inter, INTERS)
    check_option("up", up, UPS)
    check_whole("compressed", compressed)
    b, used = begin(features, out_levels)
    kept = [level for level in used if level <= out_levels[-1]]
    if not isinstance(widths, Sequence) or isinstance(widths, str) or any(type(w) is not int or w < 1 for w in widths):
        raise InputError(f"expected widths as positive whole numbers, e.g. [256, 512, 1024], got {widths!r}")
    if widths and len(widths) != len(kept):
        raise InputError(f"expected {len(kept)} widths, for levels {kept}, got {len(widths)}")
    acts = (Activation("leaky_relu", slope=0.1),) if activation == "leaky_relu" else activation_ops(activation)

    def block(width: int, kernel: int, stride: int = 1) -> tuple[Op, ...]:
        return (*conv_norm(width, kernel, norm, stride=stride, separable=separable and kernel > 1), *acts)

    width = {level: channels * 2 ** max(0, i - 1) if inter == "growing" else channels for i, level in enumerate(used)}
    maps = {level: b.then(f"lateral{level}", input_name(level), *block(width[level], 1)) for level in used}

    def resized(source: int, level: int) -> str:
        ops: tuple[Op, ...]
        if source == level:
            return maps[level]
        if source > level:
            ops = (*(block(width[level], 1) if width[source] != width[level] else ()), Resample(up))
        else:
            pool = (Resample("max_pool", kernel="stride+1"),) if level - source > 1 else ()
            ops = (*pool, *block(width[level], 3, stride=2))
        return b.add(f"resized{source}_{level}", level, Edge(maps[source], ops))

    outputs = {}
    for i, level in enumerate(kept):
        expand = block(widths[i] if widths else channels, 3)
        if len(used) == 1:
            outputs[level] = b.then(f"P{level}", maps[level], *expand)
            continue
        each = [resized(source, level) for source in used]
        votes = (Edge(name, block(compressed, 1)) for name in each)
        logits = b.add(f"logits{level}", level, *votes, merge=Merge("concat"), ops=(Conv(len(each), 1),))
        outputs[level] = b.add(f"P{level}", level, *each, logits, merge=SpatialSoftmax(), ops=expand)
    return finish(b, outputs, out_levels, extra, channels, maps[used[-1]], relu=extra_relu, norm=norm)
