"""What the families have in common: laterals, output convs, merges, extra levels."""

from __future__ import annotations

from typing import Literal

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import Activation, Conv, Edge, Merge, Node, Norm, Op, Resample, input_name
from fpn_bench.pyramid import FeatureSpec

MergeOption = Literal["sum", "mean", "max", "fast_normalised", "softmax", "concat"]
NormOption = Literal["none", "batch", "group"]
ExtraRule = Literal["subsample", "max_pool", "on_input", "on_lateral", "on_output"]
UpOption = Literal["nearest", "bilinear"]
DownOption = Literal["conv", "max_pool", "avg_pool", "subsample"]

MERGES: tuple[MergeOption, ...] = ("sum", "mean", "max", "fast_normalised", "softmax", "concat")
NORMS: tuple[NormOption, ...] = ("none", "batch", "group")
EXTRA_RULES: tuple[ExtraRule, ...] = ("subsample", "max_pool", "on_input", "on_lateral", "on_output")
UPS: tuple[UpOption, ...] = ("nearest", "bilinear")
DOWNS: tuple[DownOption, ...] = ("conv", "max_pool", "avg_pool", "subsample")


def check_option(option: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the known ones.

    Raises:
        UnknownNameError: with the nearest known value.
    """
    if value not in known:
        raise UnknownNameError(f"value of {option}", str(value), known)


def check_repeats(repeats: int) -> None:
    """Refuse anything but a whole number from 1.

    Raises:
        InputError: what came.
    """
    if type(repeats) is not int or repeats < 1:
        raise InputError(f"repeats={repeats!r} came; a whole number from 1 is wanted")


def conv_norm(
    channels: int, kernel: int, norm: NormOption, *, stride: int = 1, separable: bool = False
) -> tuple[Op, ...]:
    """A convolution and, if any, its norm layer; the bias is left to the norm where there is one."""
    check_option("norm", norm, NORMS)
    conv = Conv(channels, kernel, stride=stride, bias=norm == "none", separable=separable)
    return (conv,) if norm == "none" else (conv, Norm(norm))


def merge_ops(merge: MergeOption, channels: int) -> tuple[Merge, tuple[Op, ...]]:
    """The merge, and the 1x1 that brings a concatenation back to `channels`."""
    check_option("merge", merge, MERGES)
    return Merge(merge), (Conv(channels, 1),) if merge == "concat" else ()


def laterals(features: tuple[FeatureSpec, ...], channels: int, norm: NormOption) -> list[Node]:
    """One 1x1 convolution a backbone map: ``lateral{level}``."""
    return [
        Node(f"lateral{s.level}", s.level, (Edge(input_name(s.level)),), ops=conv_norm(channels, 1, norm))
        for s in features
    ]


def down_ops(down: DownOption, channels: int, norm: NormOption) -> tuple[Op, ...]:
    """One level up the pyramid."""
    check_option("down", down, DOWNS)
    if down == "conv":
        return conv_norm(channels, 3, norm, stride=2)
    return (Resample(down, kernel="stride+1" if down in ("max_pool", "avg_pool") else "stride"),)


def extra_levels(
    levels: tuple[int, ...],
    rule: ExtraRule,
    channels: int,
    *,
    top_input: str,
    top_lateral: str,
    top_output: str,
    relu_before: bool,
    norm: NormOption = "none",
) -> list[Node]:
    """Levels coarser than the backbone's, made after the outputs, each from the one before.

    Args:
        levels: the extra levels, finest first; may be empty.
        rule: ``"subsample"``: every second pixel of the top output (torchvision `LastLevelMaxPool`, mmdet without
            extra convs); ``"max_pool"``: 3x3 stride 2 of it; ``"on_input"``: 3x3 stride-2 conv of the backbone's
            last map (torchvision `LastLevelP6P7` on C5, RetinaNet v2; detectron2's default); ``"on_lateral"``: of the
            top lateral after the top-down path; ``"on_output"``: of the top output (torchvision RetinaNet v1, FCOS).
        channels: width.
        top_input, top_lateral, top_output: names of the nodes the rules start from.
        relu_before: ReLU before the second and later extra convs (torchvision and detectron2 do, mmdet by option).
        norm: norm layer behind each extra conv.
    """
    check_option("extra", rule, EXTRA_RULES)
    start = {"on_input": top_input, "on_lateral": top_lateral}.get(rule, top_output)
    nodes: list[Node] = []
    for i, level in enumerate(levels):
        source = start if i == 0 else nodes[-1].name
        ops: tuple[Op, ...]
        if rule == "subsample":
            ops = (Resample("subsample"),)
        elif rule == "max_pool":
            ops = (Resample("max_pool", kernel="stride+1"),)
        else:
            relu: tuple[Op, ...] = (Activation("relu"),) if relu_before and i > 0 else ()
            ops = relu + conv_norm(channels, 3, norm, stride=2)
        nodes.append(Node(f"P{level}", level, (Edge(source, ops),)))
    return nodes


def within(
    features: tuple[FeatureSpec, ...], out_levels: tuple[int, ...]
) -> tuple[tuple[FeatureSpec, ...], tuple[int, ...]]:
    """(features from the finest output level up, the output levels above every feature)."""
    used = tuple(s for s in features if s.level >= out_levels[0])
    return used, tuple(level for level in out_levels if level > used[-1].level)
