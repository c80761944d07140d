"""TPN: Picron, Tuytelaars, "Trident Pyramid Networks for Object Detection", BMVC 2022."""

from __future__ import annotations

from fpn_bench.graph import Activation, Conv, Edge, NeckGraph, Norm, Op, Resample
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import check_factor, residual, scaled
from fpn_bench.zoo.parts import (
    NORMS,
    UPS,
    ExtraRule,
    NormOption,
    UpOption,
    begin,
    check_option,
    check_repeats,
    extend_by_rule,
    finish,
    laterals,
)
from fpn_bench.zoo.registry import neck


@neck
def tpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    repeats: int = 3,
    depth: int = 2,
    expansion: float = 0.25,
    up: UpOption = "bilinear",
    norm: NormOption = "group",
    separable: bool = False,
    extra: ExtraRule = "on_input",
    extra_relu: bool = True,
) -> NeckGraph:
    """Trident pyramid network (Picron & Tuytelaars 2022), as in the authors' configurations.

    Each layer goes top-down, processes every level by itself in bottlenecks, goes bottom-up, and processes every level
    again. All of it is residual and normalised before each conv: a level adds the upsampled 1x1 of the level above, a
    bottleneck whose 3x3 has stride 2 of the level below, a bottleneck of itself.

    Deviations: extra rules other than ``"on_input"``; a group of the norm has at least 8 channels, so that there are
    the authors' 8 groups only where there are 64 channels or more (in a bottleneck, of ``channels * expansion``).

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous; those above the backbone's take part in every layer.
        channels: width of every level (256 in the paper).
        repeats: layers, L in the paper.
        depth: bottlenecks each time that a level is processed, B in the paper: more of them and fewer layers trade
            communication between levels for processing of each.
        expansion: a bottleneck's 3x3 has ``channels * expansion`` channels, and at least 8.
        up: interpolation of the top-down paths.
        norm: before every ReLU; at most 8 groups. Extra convs have none.
        separable: the bottlenecks' 3x3 convs are depthwise separable.
        extra: how the levels above the backbone's are made before the first layer, from the one before: ``"on_input"``
            3x3 stride 2 of the backbone's last map; ``"on_lateral"``: of its bare 1x1, before any path;
            ``"subsample"``, ``"max_pool"`` (overlapping 3x3): of that 1x1; ``"on_output"`` makes them of the last
            layer's top output instead, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_repeats(repeats)
    check_repeats(depth, "depth")
    check_factor("expansion", expansion)
    check_option("up", up, UPS)
    check_option("norm", norm, NORMS)
    b, used = begin(features, out_levels)
    maps = laterals(b, used, channels, "none")
    if extra != "on_output":
        extend_by_rule(b, maps, out_levels[-1], extra, channels, maps[used[-1]], relu=extra_relu)
    normed: tuple[Op, ...] = () if norm == "none" else (Norm(norm, groups=8),)
    active = (*normed, Activation("relu"))
    inner = max(8, scaled(channels, expansion))

    def bottleneck(stride: int) -> tuple[Op, ...]:
        between = Conv(inner, 3, stride=stride, separable=separable)
        return (*active, Conv(inner, 1), *active, between, *active, Conv(channels, 1))

    def processed(stage: str, maps: dict[int, str]) -> dict[int, str]:
        for i in range(1, depth + 1):
            block = "" if i == depth else f"_{i}"
            maps = {level: residual(b, f"{stage}{level}{block}", x, bottleneck(1)) for level, x in maps.items()}
        return maps

    for turn in range(1, repeats + 1):
        last = turn == repeats
        for level in sorted(maps, reverse=True)[1:]:
            above = Edge(maps[level + 1], (*active, Conv(channels, 1), Resample(up)))
            maps[level] = b.add(f"top_down{turn}_{level}", level, maps[level], above)
        maps = processed(f"middle{turn}_", {k: x for k, x in maps.items() if not last or k <= out_levels[-1]})
        for level in sorted(maps)[1:]:
            below = Edge(maps[level - 1], bottleneck(2))
            maps[level] = b.add(f"bottom_up{turn}_{level}", level, maps[level], below)
        maps = processed("P" if last else f"end{turn}_", maps)
    top = max(maps)
    return finish(b, maps, out_levels, extra, channels, maps[top], relu=extra_relu)
