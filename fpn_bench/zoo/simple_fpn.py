"""ViTDet: Li, Mao, Girshick, He, "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022."""

from __future__ import annotations

from typing import Literal

from fpn_bench.graph import Activation, Conv, Edge, NeckGraph, Norm, Op, Resample, TransposedConv, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import ACTIVATIONS, NORMS, ActivationOption, ExtraRule, NormOption, begin, check_option, finish
from fpn_bench.zoo.registry import neck


@neck(makes_levels=True)
def simple_fpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    norm: NormOption | Literal["layer"] = "layer",
    activation: ActivationOption = "gelu",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Simple feature pyramid of ViTDet (Li et al. 2022, section 3 and figure 2 (c)), as in detectron2.

    Every level is made of one map, whatever its level, and nothing passes between levels: 2x2 transposed convolutions
    towards finer levels, each halving the channels, norm and activation between two of them; a 2x2 max pool towards
    the next coarser one; then a 1x1 and a 3x3 convolution, each with a norm.

    Deviations: detectron2 has the factors 4, 2, 1 and 1/2 only; here every finer level has one more transposed
    convolution.

    Args:
        features: the backbone's features. The coarsest alone is read; a plain transformer has one, of stride 16.
        out_levels: contiguous; may begin finer than every feature. Two levels and more above the map that is read are
            made by `extra`.
        channels: width of every level (256 in the paper).
        norm: norm layer behind the 1x1 and 3x3 convs, which then have no bias, and between the transposed ones; extra
            convs have none, as in detectron2.
        activation: between two transposed convolutions.
        separable: the 3x3 convs are depthwise separable.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`; ``"on_input"`` starts from the max-pooled map,
            ``"on_lateral"`` from its 1x1.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("norm", norm, (*NORMS, "layer"))
    check_option("activation", activation, ACTIVATIONS)
    normed: tuple[Op, ...] = () if norm == "none" else (Norm(norm, eps=1e-6 if norm == "layer" else 1e-5),)
    between = normed if activation == "none" else (*normed, Activation(activation))
    bias = norm == "none"
    b, used = begin(features, out_levels)
    source = input_name(used[-1])
    level, width = b.level(source), b.channels(source)
    scaled, laterals, outputs = {}, {}, {}
    for k in range(out_levels[0], min(level + 1, out_levels[-1]) + 1):
        ops: list[Op] = [Resample("max_pool")] if k > level else []
        for step in range(level - k):
            ops += [*(between if step else ()), TransposedConv(max(1, width // 2 ** (step + 1)))]
        scaled[k] = b.add(f"scaled{k}", k, Edge(source, tuple(ops))) if ops else source
        laterals[k] = b.then(f"lateral{k}", scaled[k], Conv(channels, 1, bias=bias), *normed)
        outputs[k] = b.then(f"P{k}", laterals[k], Conv(channels, bias=bias, separable=separable), *normed)
    top = max(outputs)
    return finish(b, outputs, out_levels, extra, channels, laterals[top], relu=extra_relu, top_input=scaled[top])
