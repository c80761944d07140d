"""HybridEncoder: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection" (RT-DETR), CVPR 2024."""

from __future__ import annotations

from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import (
    SUM,
    Unit,
    check_factor,
    concat_pan,
    csp_layer,
    rep_block,
    transformer_layer,
)
from fpn_bench.zoo.parts import (
    ActivationOption,
    ExtraRule,
    NormOption,
    UpOption,
    begin,
    check_repeats,
    check_whole,
    finish,
    laterals,
)
from fpn_bench.zoo.registry import neck


@neck
def hybrid_encoder(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    encoder_layers: int = 1,
    heads: int = 8,
    feedforward: int = 1024,
    depth: int = 3,
    expansion: float = 1.0,
    deploy: bool = False,
    up: UpOption = "nearest",
    norm: NormOption = "batch",
    activation: ActivationOption = "silu",
    extra: ExtraRule = "subsample",
    extra_relu: bool = True,
) -> NeckGraph:
    """Efficient hybrid encoder (RT-DETR, section 4.2 and figure 4), the authors' `HybridEncoder`.

    Every map is projected by a 1x1; a transformer encoder layer runs over the pixels of the coarsest ("AIFI"); then the
    paths of `csp_pafpn`, all levels equally wide, with RepVGG blocks whose CSP layer sums its two paths ("CCFF").

    RT-DETR-R50: 256 channels; -R101: 384, ``feedforward=2048``; -R18 and -R34: 256, ``expansion=0.5``. Of -R50, at
    640x640, 25.376 GMAC are quoted elsewhere; they leave the two products of the attention out, with which it has
    25.4575.

    Deviations: up-sampling goes to the map's own size, also where that does not halve; the first half of
    the position's channels is the column's (in the code the row's, and only right for square maps); no dropout; any
    number of levels (three in the paper).

    Args:
        features: the backbone's features, as in `fpn`.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width; a multiple of 4 where there are encoder layers.
        encoder_layers: transformer layers over the coarsest map, from 0.
        heads: of the attention; the largest number up to this that divides `channels` is taken.
        feedforward: hidden channels of a transformer layer.
        depth: RepVGG blocks a CSP layer.
        expansion: width of a CSP layer's two paths, in `channels`.
        deploy: the RepVGG blocks are the single convolutions that the trained ones fold into.
        up: interpolation of the top-down path.
        norm: norm layer behind every convolution outside of the transformer layers, which have layer norms.
        activation: behind every norm but the projections'; transformer layers have GELU.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_relu: ReLU before the second and later extra convs.
    """
    check_repeats(encoder_layers, "encoder_layers", least=0)
    check_whole("heads", heads)
    check_whole("feedforward", feedforward)
    check_repeats(depth, "depth")
    check_factor("expansion", expansion)
    unit = Unit(norm, activation)
    b, used = begin(features, out_levels)
    maps = laterals(b, used, channels, norm)
    for i in range(1, encoder_layers + 1):
        maps[used[-1]] = transformer_layer(
            b, f"encoder{i}", maps[used[-1]], heads=heads, feedforward=feedforward, activation="gelu"
        )

    def block(name: str, source: str) -> str:
        return rep_block(b, name, source, b.channels(source), unit, deploy=deploy)

    outputs, lateral = concat_pan(
        b,
        maps,
        out_levels[-1],
        up=up,
        reduce=lambda level: unit(channels),
        down=lambda level: unit(channels, 3, stride=2),
        fuse=lambda name, level, inputs: csp_layer(
            b, name, level, inputs, channels, unit, block, depth=depth, expansion=expansion, merge=SUM
        ),
    )
    return finish(
        b,
        {level: b.then(f"P{level}", x) for level, x in outputs.items()},
        out_levels,
        extra,
        channels,
        lateral,
        relu=extra_relu,
        norm=norm,
    )
