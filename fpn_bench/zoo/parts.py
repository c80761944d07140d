"""What the families have in common: laterals, output convs, merges, extra levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import Activation, Conv, Edge, GraphBuilder, Merge, NeckGraph, Norm, Op, Resample, input_name
from fpn_bench.graph.kinds import InterpolationKind
from fpn_bench.graph.validate import MAX_NUMBER
from fpn_bench.pyramid import FeatureSpec

MergeOption = Literal["sum", "mean", "max", "fast_normalised", "softmax", "concat"]
NormOption = Literal["none", "batch", "group"]
ActivationOption = Literal["none", "relu", "relu6", "silu", "leaky_relu", "gelu", "hard_swish"]
ExtraRule = Literal["subsample", "max_pool", "on_input", "on_lateral", "on_output"]
UpOption = InterpolationKind
DownOption = Literal["conv", "max_pool", "avg_pool", "subsample"]
PoolOption = Literal["max_pool", "avg_pool"]

MERGES: tuple[MergeOption, ...] = get_args(MergeOption)
NORMS: tuple[NormOption, ...] = get_args(NormOption)
ACTIVATIONS: tuple[ActivationOption, ...] = get_args(ActivationOption)
EXTRA_RULES: tuple[ExtraRule, ...] = get_args(ExtraRule)
UPS: tuple[UpOption, ...] = get_args(UpOption)
DOWNS: tuple[DownOption, ...] = get_args(DownOption)
POOLS: tuple[PoolOption, ...] = get_args(PoolOption)


def check_option(option: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the known ones.

    Raises:
        UnknownNameError: with the nearest known value.
    """
    if value not in known:
        raise UnknownNameError(f"value of {option}", str(value), known)


MAX_REPEATS = 2_000
"""Cells or layers in a row that a family takes; published necks have up to nine. What is larger is refused before any
of its nodes is made."""


def check_whole(option: str, value: object, least: int = 1, most: int = MAX_NUMBER) -> None:
    """Refuse anything but a whole number from `least` to `most`.

    Raises:
        InputError: what was expected and what it is.
    """
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"expected {option} to be a whole number from {least} to {most:,}, got {value!r}")


def check_repeats(repeats: object, option: str = "repeats", least: int = 1) -> None:
    """`check_whole` for how often something stands in a row."""
    check_whole(option, repeats, least, MAX_REPEATS)


def conv_norm(
    channels: int,
    kernel: int,
    norm: NormOption,
    *,
    stride: int = 1,
    groups: int = 1,
    separable: bool = False,
    activation: ActivationOption = "none",
) -> tuple[Op, ...]:
    """A convolution and, if any, its norm layer and activation; the bias is left to the norm where there is one."""
    normed = norm_ops(norm)
    conv = Conv(channels, kernel, stride=stride, groups=groups, bias=not normed, separable=separable)
    return (conv, *normed, *activation_ops(activation))


def norm_ops(norm: NormOption, *, eps: float = 1e-5, momentum: float = 0.1) -> tuple[Op, ...]:
    """A norm layer, or nothing."""
    check_option("norm", norm, NORMS)
    return () if norm == "none" else (Norm(norm, eps, momentum),)


def activation_ops(activation: ActivationOption) -> tuple[Op, ...]:
    """An activation, or nothing."""
    check_option("activation", activation, ACTIVATIONS)
    return () if activation == "none" else (Activation(activation),)


def merge_ops(merge: MergeOption, channels: int) -> tuple[Merge, tuple[Op, ...]]:
    """The merge, and the 1x1 that brings a concatenation back to `channels`."""
    check_option("merge", merge, MERGES)
    return Merge(merge), (Conv(channels, 1),) if merge == "concat" else ()


def begin(features: tuple[FeatureSpec, ...], out_levels: tuple[int, ...]) -> tuple[GraphBuilder, tuple[int, ...]]:
    """An empty graph over the features, and the levels among them from the finest output level up, finest first."""
    return GraphBuilder(features), tuple(s.level for s in features if s.level >= out_levels[0])


def laterals(
    b: GraphBuilder,
    levels: tuple[int, ...],
    channels: int,
    norm: NormOption,
    activation: ActivationOption = "none",
    kernel: int = 1,
) -> dict[int, str]:
    """One convolution a backbone map, ``lateral{level}``; level -> name."""
    ops = conv_norm(channels, kernel, norm, activation=activation)
    return {level: b.then(f"lateral{level}", input_name(level), *ops) for level in levels}


def top_down(
    b: GraphBuilder,
    maps: Mapping[int, str],
    name: str,
    up: UpOption,
    merge: Merge,
    ops: tuple[Op, ...] = (),
) -> dict[int, str]:
    """FPN's path: each map merged with the upsampled result of the level above, ``{name}{level}``; level -> name."""
    check_option("up", up, UPS)
    return _path(b, maps, name, (Resample(up),), merge, ops, reverse=True)


def bottom_up(
    b: GraphBuilder,
    maps: Mapping[int, str],
    name: str,
    down: tuple[Op, ...],
    merge: Merge,
    ops: tuple[Op, ...] = (),
) -> dict[int, str]:
    """PANet's path: each map merged with the result of the level below behind `down`; level -> name."""
    return _path(b, maps, name, down, merge, ops, reverse=False)


def _path(
    b: GraphBuilder,
    maps: Mapping[int, str],
    name: str,
    step: tuple[Op, ...],
    merge: Merge,
    ops: tuple[Op, ...],
    *,
    reverse: bool,
) -> dict[int, str]:
    merged: dict[int, str] = {}
    neighbour = ""
    for level in sorted(maps, reverse=reverse):
        if neighbour:
            neighbour = b.add(f"{name}{level}", level, maps[level], Edge(neighbour, step), merge=merge, ops=ops)
        else:
            neighbour = maps[level]
        merged[level] = neighbour
    return merged


def down_ops(down: DownOption, channels: int, norm: NormOption) -> tuple[Op, ...]:
    """One level up the pyramid."""
    check_option("down", down, DOWNS)
    if down == "conv":
        return conv_norm(channels, 3, norm, stride=2)
    return (Resample(down, kernel="stride+1" if down in ("max_pool", "avg_pool") else "stride"),)


def pooled(
    b: GraphBuilder, source: str, levels: Iterable[int], pool: PoolOption, ops: tuple[Op, ...], shared: str = ""
) -> list[str]:
    """One output a level, ``P{level}``: the map pooled to it by windows that tile it, and `ops` behind."""
    check_option("pool", pool, POOLS)
    maps = {
        level: b.add(f"pooled{level}", level, Edge(source, (Resample(pool),))) if level > b.level(source) else source
        for level in levels
    }
    return [b.then(f"P{level}", x, *ops, shared=shared) for level, x in maps.items()]


def extend(
    b: GraphBuilder,
    maps: dict[int, str],
    last: int,
    ops: tuple[Op, ...],
    *,
    then: tuple[Op, ...] | None = None,
    source: str = "",
    name: str = "extra",
) -> None:
    """Add to `maps` the levels up to `last` that it lacks, ``{name}{level}``, each made of the one before.

    Args:
        b: the graph so far.
        maps: level -> name.
        last: coarsest level wanted.
        ops: one level up, for the first of them.
        then: the same for the later ones, where it differs.
        source: what the first is made of; the coarsest of `maps`, if not given.
        name: opens the names.
    """
    top = max(maps)
    source = source or maps[top]
    for level in range(top + 1, last + 1):
        maps[level] = source = b.add(f"{name}{level}", level, Edge(source, ops))
        ops = ops if then is None else then


def extend_by_rule(
    b: GraphBuilder,
    maps: dict[int, str],
    last: int,
    rule: ExtraRule,
    channels: int,
    top_lateral: str,
    *,
    relu: bool,
    norm: NormOption = "none",
    top_input: str = "",
    name: str = "extra",
) -> None:
    """`extend` by one of the rules, and with the other arguments, of `finish`."""
    check_option("extra", rule, EXTRA_RULES)
    source = {"on_input": top_input or input_name(b.features[-1].level), "on_lateral": top_lateral}.get(rule, "")
    ops: tuple[Op, ...] = conv_norm(channels, 3, norm, stride=2)
    then: tuple[Op, ...] = (Activation("relu"), *ops) if relu else ops
    if rule == "subsample":
        ops = then = (Resample("subsample"),)
    elif rule == "max_pool":
        ops = then = (Resample("max_pool", kernel="stride+1"),)
    extend(b, maps, last, ops, then=then, source=source, name=name)


def finish(
    b: GraphBuilder,
    outputs: Mapping[int, str],
    out_levels: tuple[int, ...],
    rule: ExtraRule,
    channels: int,
    top_lateral: str,
    *,
    relu: bool,
    norm: NormOption = "none",
    top_input: str = "",
) -> NeckGraph:
    """The graph, with the levels that `outputs` lacks made of the coarsest, each from the one before.

    Args:
        b: the graph so far.
        outputs: level -> name of what is there already; those above the last of `out_levels` are not returned.
        out_levels: levels to return.
        rule: ``"subsample"``: every second pixel of the top output (torchvision `LastLevelMaxPool`, mmdet without
            extra convs); ``"max_pool"``: max-pool of it, windows of 3x3 that overlap; ``"on_input"``: 3x3 stride-2 conv
            of the backbone's last map (torchvision `LastLevelP6P7` on C5, RetinaNet v2; detectron2's default);
            ``"on_lateral"``: of the top lateral as the top-down path leaves it (mmdet); ``"on_output"``: of the top
            output (torchvision RetinaNet v1, FCOS). Families whose extra levels take part in merging have the same
            words for what they begin with, before any path: see there.
        channels: width.
        top_lateral: the node that ``"on_lateral"`` starts from; the top output is the coarsest of `outputs`.
        relu: ReLU before the second and later extra convs (torchvision and detectron2 do, mmdet by option).
        norm: norm layer behind each extra conv, which then has no bias. mmdet has there what it has behind all
            convolutions of a neck; torchvision and detectron2 have none, whatever their FPN has: ``"none"``. An option
            ``extra_norm=False`` of a family says so; families without it pass what their original has.
        top_input: what ``"on_input"`` starts from; the backbone's coarsest map, if not given.
    """
    names = dict(outputs)
    last = out_levels[-1]
    extend_by_rule(b, names, last, rule, channels, top_lateral, relu=relu, norm=norm, top_input=top_input, name="P")
    return b.graph(names[level] for level in out_levels)
