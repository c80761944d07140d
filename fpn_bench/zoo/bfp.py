"""BFP: Pang, Chen, Shi, Feng, Ouyang, Lin, "Libra R-CNN: Towards Balanced Learning for Object Detection", CVPR 2019."""

from __future__ import annotations

from typing import Literal

from fpn_bench.errors import InputError
from fpn_bench.graph import Attention, Conv, Edge, GraphBuilder, Merge, NeckGraph, Op, Resample
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.fpn import fpn
from fpn_bench.zoo.parts import ExtraRule, NormOption, UpOption, check_option, conv_norm, norm_ops
from fpn_bench.zoo.registry import neck

RefineOption = Literal["none", "conv", "non_local"]
REFINES: tuple[RefineOption, ...] = ("none", "conv", "non_local")


@neck
def bfp(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    refine: RefineOption = "non_local",
    refine_level: int = 4,
    up: UpOption = "nearest",
    norm: NormOption = "none",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Balanced feature pyramid (Pang et al. 2019, section 3.2 and figure 4), behind an FPN, as in mmdet.

    All outputs of the FPN, extra levels too, are gathered at one level and averaged; the mean is refined, brought back
    to each level and added to that level's map. Finer maps are gathered, and coarser ones given back, by adaptive
    max-pools.

    Deviation: the last 1x1 of the non-local block begins small, not at zero, and so do the other three.

    Args:
        features: the backbone's features, as in `fpn`.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level (256 in the paper).
        refine: of the mean: ``"non_local"`` (Wang et al. 2018: embedded Gaussian, unscaled, no reduction), as in the
            paper; ``"conv"``: 3x3 and ReLU; ``"none"``.
        refine_level: where the maps are gathered; P4 in mmdet's configurations. The nearest output level, where it is
            none of them.
        up: interpolation, of the FPN too.
        norm: norm layer behind every convolution of the FPN and of the refinement (its last one).
        separable: 3x3 convs are depthwise separable.
        extra: rule for extra levels of the FPN, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs of the FPN.
    """
    check_option("refine", refine, REFINES)
    if type(refine_level) is not int:
        raise InputError(f"expected refine_level to be a whole number, e.g. 4 for P4, got {refine_level!r}")
    b = GraphBuilder(features)
    pyramid = _copy(
        b,
        fpn(features, out_levels, channels, up=up, norm=norm, separable=separable, extra=extra, extra_relu=extra_relu),
    )
    at = min(max(refine_level, out_levels[0]), out_levels[-1])

    def to(source: str, level: int) -> Edge:
        step = b.level(source) - level
        ops: tuple[Op, ...] = (Resample(up),) if step > 0 else (Resample("adaptive_max_pool"),)
        return Edge(source, ops if step else ())

    balanced = b.add("gathered", at, *(to(name, at) for name in pyramid.values()), merge=Merge("mean"))
    if refine == "conv":
        balanced = b.then("refined", balanced, *conv_norm(channels, 3, norm, separable=separable, activation="relu"))
    elif refine == "non_local":
        small = Edge(balanced, (Conv(channels, 1, gain=0.1),))
        mixed = b.add("attention", at, small, small, small, merge=Attention(scaled=False))
        back = (Conv(channels, 1, bias=norm == "none", gain=0.1), *norm_ops(norm))
        balanced = b.add("refined", at, balanced, Edge(mixed, back))
    outputs = [b.add(f"P{level}", level, name, to(balanced, level)) for level, name in pyramid.items()]
    return b.graph(outputs)


def _copy(b: GraphBuilder, graph: NeckGraph) -> dict[int, str]:
    """The nodes of a whole neck, its outputs as ``fpn{level}``; level -> name."""
    outputs = {graph.level_of(name): name for name in graph.outputs}
    renamed = {name: f"fpn{level}" for level, name in outputs.items()}
    for node in graph.nodes:
        inputs = (Edge(renamed.get(edge.source, edge.source), edge.ops) for edge in node.inputs)
        name = renamed.get(node.name, node.name)
        b.add(name, node.level, *inputs, merge=node.merge, ops=node.ops, shared=node.shared)
    return {level: renamed[name] for level, name in outputs.items()}
