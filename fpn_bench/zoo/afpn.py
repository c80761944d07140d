"""AFPN: Yang, Lei, Zhu et al., "AFPN: Asymptotic Feature Pyramid Network for Object Detection", SMC 2023."""

from __future__ import annotations

from fpn_bench.graph import Conv, Edge, GraphBuilder, Merge, NeckGraph, Op, Resample, SpatialSoftmax, input_name
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
    check_repeats,
    check_whole,
    conv_norm,
    finish,
    norm_ops,
)
from fpn_bench.zoo.registry import neck


@neck
def afpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    depth: int = 4,
    reduction: int = 8,
    compressed: int = 8,
    up: UpOption = "bilinear",
    norm: NormOption = "batch",
    activation: ActivationOption = "relu",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Asymptotic feature pyramid network (Yang et al. 2023, section 3 and figure 2), after the authors' code.

    Levels are fused progressively: first the two finest, then these and the next coarser, and so on. In each stage,
    every level taking part sums the resized maps of all of them with weights that differ from pixel to pixel (as
    `asff`), a 3x3 follows, then residual blocks. Each level keeps its own width until a last 1x1. Towards finer levels
    a 1x1 and an interpolation resize a map, towards coarser ones a convolution whose windows tile it.

    The authors' mmdet form is the default: 4 blocks, an eighth of the backbone's channels, ReLU, P2 to P5 and a
    subsampled P6. Their YOLOv5 form, but for its outputs of unequal width: ``depth=3, reduction=4, activation="silu"``
    over P3 to P5.

    Any number of levels is taken; a single one is not fused. Deviations: a level's width is at least 8; weights are not
    drawn as small as the authors'.

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every output (256 in the paper).
        depth: residual blocks a level and stage.
        reduction: the backbone's channels divided by this are a level's width, which is at least 8.
        compressed: channels that the logits are made from, a map.
        up: interpolation towards finer levels.
        norm: norm layer behind every convolution but those of the weights; the convs of the blocks have a bias as
            well, as in the code.
        activation: behind that; in the blocks, as in ResNet. Some twenty stand behind one another: the smooth ones,
            which halve small values, make next to nothing of a neck in eval mode that was not trained.
        separable: 3x3 convs are depthwise separable.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("up", up, UPS)
    check_repeats(depth, "depth")
    check_whole("reduction", reduction)
    check_whole("compressed", compressed)
    b, used = begin(features, out_levels)
    acts = activation_ops(activation)

    def block(width: int, kernel: int, stride: int = 1) -> tuple[Op, ...]:
        return (*conv_norm(width, kernel, norm, stride=stride, separable=separable and kernel == 3), *acts)

    width = {level: max(8, b.channels(input_name(level)) // reduction) for level in used}
    maps = {}
    for level in used:
        reduced = b.then(f"lateral{level}", input_name(level), *block(width[level], 1))
        maps[level] = b.then(f"base{level}", reduced, *block(width[level], 1))
    for size in range(2, len(used) + 1):
        taking_part = used[:size]
        fused = {}
        for level in taking_part:
            each = []
            for source in taking_part:
                name, ops = maps[source], block(width[level], 1)
                if source != level:
                    stride = 2 ** (level - source) if level > source else 1
                    resize = (*ops, Resample(up)) if source > level else block(width[level], stride, stride=stride)
                    name = b.add(f"stage{size}_{source}to{level}", level, Edge(name, resize))
                each.append(name)
            votes = (Edge(name, block(compressed, 1)) for name in each)
            logits = b.add(f"stage{size}_logits{level}", level, *votes, merge=Merge("concat"), ops=(Conv(size, 1),))
            merged = SpatialSoftmax()
            name = b.add(f"stage{size}_fused{level}", level, *each, logits, merge=merged, ops=block(width[level], 3))
            conv = (Conv(width[level], separable=separable), *norm_ops(norm))
            for i in range(depth):
                name = _residual(b, f"stage{size}_block{level}_{i + 1}", name, conv, acts)
            fused[level] = name
        maps |= fused
    outputs = {
        level: b.then(f"P{level}", maps[level], *block(channels, 1)) for level in used if level <= out_levels[-1]
    }
    return finish(b, outputs, out_levels, extra, channels, maps[used[-1]], relu=extra_relu, norm=norm)


def _residual(b: GraphBuilder, name: str, source: str, conv: tuple[Op, ...], acts: tuple[Op, ...]) -> str:
    """ResNet's basic block (He et al. 2016): two 3x3, the input added before the last activation."""
    middle = b.then(f"{name}_in", source, *conv, *acts)
    return b.add(name, b.level(source), source, Edge(middle, conv), ops=acts)
