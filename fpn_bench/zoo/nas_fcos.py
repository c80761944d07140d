"""NAS-FCOS: Wang, Gao, Chen et al., "NAS-FCOS: Fast Neural Architecture Search for Object Detection", CVPR 2020."""

from __future__ import annotations

import functools
import math
from typing import Literal

from fpn_bench.graph import Conv, DeformableConv, Edge, Merge, NeckGraph, Resample
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    MERGES,
    UPS,
    ActivationOption,
    ExtraRule,
    MergeOption,
    NormOption,
    UpOption,
    activation_ops,
    begin,
    check_option,
    conv_norm,
    finish,
    laterals,
    norm_ops,
)
from fpn_bench.zoo.registry import neck


@neck
def nas_fcos(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    merge: MergeOption | Literal["weighted"] = "concat",
    up: UpOption = "bilinear",
    norm: NormOption = "batch",
    activation: ActivationOption = "relu",
    separable: bool = False,
    extra: ExtraRule = "on_output",
    extra_relu: bool = True,
) -> NeckGraph:
    """The feature pyramid found by NAS-FCOS (Wang et al. 2020), as in Lausannen/NAS-FCOS.

    A cell brings two maps, each behind a modulated deformable 3x3 conv or as it is, to the finer one's size and merges
    them. Over C3, C4, C5 (1x1, norm, activation each), with * for a deformable conv::

        a = cell(C5*, C5*)   b = cell(C5*, C5*)   c = cell(a*, C5)   d = cell(C3*, C5)
        P5 = cell(b*, C5*) + c   P4 = cell(a*, d*) + c   P3 = cell(d*, C4*) + c

    c is what no cell reads; it is added to all outputs. P4's cell is as fine as d; its sum is brought to P4's size.

    Deviations: the search saw these three levels only. Over others the same rule reads: every level below the top has
    a d of its own; a level's output merges it with the next coarser feature, and the output next to the top merges a
    with the d below it, or, when there is none, its own. Bringing P4's sum to P4's size bilinearly is the 2x2 average
    pooling used here, but at borders of odd maps. The convs that make offsets start small, not at zero, so that
    gradients reach all weights from the first step.

    Args:
        features: the backbone's features. All from the finest output level up take part.
        out_levels: contiguous (3 to 7 in the paper); those above the backbone's are made by `extra`.
        channels: width of every level (256 in the paper).
        merge: of a cell: ``"concat"``, behind it norm, activation and a 1x1 conv in as many groups as channels, or
            another merge with nothing behind it; ``"weighted"``, a factor an input and channel, is the search's other
            candidate.
        up: interpolation towards finer levels.
        norm: behind laterals and deformable convs and in ``"concat"``; extra convs have none, as the authors'.
        activation: behind each norm.
        separable: depthwise separable convs, another candidate of the search, in the place of the deformable ones.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("merge", merge, (*MERGES, "weighted"))
    check_option("up", up, UPS)
    b, used = begin(features, out_levels)
    maps = laterals(b, used, channels, norm, activation)
    after = (*norm_ops(norm), *activation_ops(activation))

    def deformed(source: str, name: str) -> str:
        if separable:
            return b.then(name, source, *conv_norm(channels, 3, norm, separable=True, activation=activation))
        conv = DeformableConv(channels)
        offsets = Conv(conv.offset_channels * math.gcd(2, channels), gain=0.01)
        steer = b.then(f"{name}_offsets", source, offsets)
        return b.add(name, b.level(source), source, steer, merge=conv, ops=after)

    def cell(name: str, first: str, second: str, *, plain: bool = False) -> str:
        """Both behind a deformable conv, the second one without where `plain`."""
        inputs = [deformed(first, f"{name}_first"), second if plain else deformed(second, f"{name}_second")]
        level = min(map(b.level, inputs))
        edges = [Edge(x, (Resample(up),) if b.level(x) > level else ()) for x in inputs]
        if merge != "concat":
            return b.add(name, level, *edges, merge=Merge(merge, per_channel=merge == "weighted"))
        mix = (*after, Conv(channels, 1, groups=channels, bias=False))
        return b.add(name, level, *edges, merge=Merge("concat"), ops=mix)

    *lower, top = used
    a = cell("a", maps[top], maps[top])
    c = cell("c", a, maps[top], plain=True)

    @functools.cache
    def d(level: int) -> str:
        return cell(f"d{level}", maps[level], maps[top], plain=True)

    outputs: dict[int, str] = {}
    for level in (k for k in used if k <= out_levels[-1]):
        name = f"cell{level}"
        if level == top:
            x = cell(name, cell("b", maps[top], maps[top]), maps[top])
        elif level + 1 == top:
            x = cell(name, a, d(max(level - 1, lower[0])))
        else:
            x = cell(name, d(level), maps[level + 1])
        at = b.level(x)
        total = b.add(
            f"P{level}" if at == level else f"sum{level}", at, x, Edge(c, (Resample(up),) if at < top else ())
        )
        outputs[level] = total if at == level else b.add(f"P{level}", level, Edge(total, (Resample("avg_pool"),)))
    return finish(b, outputs, out_levels, extra, channels, maps[top], relu=extra_relu)
