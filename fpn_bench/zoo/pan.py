"""PAN in EfficientDet's cells: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020."""

from __future__ import annotations

from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.cells import Cells, ExtraOption, FusionOption, LateralOption
from fpn_bench.zoo.parts import ActivationOption, NormOption, PoolOption, UpOption, check_repeats
from fpn_bench.zoo.registry import neck


@neck
def pan(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    repeats: int = 3,
    fusion: FusionOption = "fast_normalised",
    lateral: LateralOption = "edge",
    norm: NormOption = "batch",
    activation: ActivationOption = "silu",
    separable: bool = True,
    pre_activation: bool = True,
    redundant_bias: bool = False,
    up: UpOption = "nearest",
    down: PoolOption = "max_pool",
    eps: float = 1e-4,
    per_channel: bool = False,
    extra: ExtraOption = "conv_pool",
) -> NeckGraph:
    """PANet's topology made of EfficientDet's cells (Tan et al. 2020, figure 2 (b), the rival of BiFPN in table 4).

    A top-down path with a node on every level, then a bottom-up path over those, as effdet's `pan_fa` and `pan_sum`.
    Nodes of one input have a learned weight as well, but not with the softmax, which would be 1. `pafpn` is PANet as
    its own paper and mmdet have it.

    Args:
        features: the backbone's features; those coarser than the last output are not read.
        out_levels: contiguous; all take part in every cell.
        channels: width.
        repeats: cells.
        fusion: ``"fast_normalised"``, ``"softmax"`` or ``"sum"`` of a node's inputs.
        lateral: where a backbone map gets its 1x1: ``"edge"``, one on each edge of the first cell that reads it;
            ``"level"``, one a level that all its readers share.
        norm: norm layer behind the laterals and the convs of the nodes; with none, the latter's initial weights keep
            the spread of the maps.
        activation: before each node's conv, or behind its norm.
        separable: the nodes' convs are depthwise separable.
        pre_activation: activation, conv, norm; else conv, norm, activation.
        redundant_bias: a bias also where a norm follows.
        up: interpolation towards finer levels.
        down: pool towards coarser levels, 3x3 stride 2.
        eps: of ``"fast_normalised"``.
        per_channel: each channel has a weight of its own.
        extra: how levels above the backbone's are made, see `bifpn`.
    """
    check_repeats(repeats)
    cells = Cells(
        features,
        out_levels,
        channels,
        fusion=fusion,
        lateral=lateral,
        norm=norm,
        activation=activation,
        separable=separable,
        pre_activation=pre_activation,
        redundant_bias=redundant_bias,
        up=up,
        down=down,
        eps=eps,
        per_channel=per_channel,
        extra=extra,
    )
    first, last = out_levels[0], out_levels[-1]
    for _ in range(repeats):
        inputs = cells.begin()
        down_path: dict[int, str] = {}
        for level in range(last, first - 1, -1):
            sources = [inputs[level]] if level == last else [inputs[level], down_path[level + 1]]
            down_path[level] = cells.node(f"top_down{level}", level, sources)
        outputs: dict[int, str] = {}
        for level in range(first, last + 1):
            sources = [down_path[level]] if level == first else [down_path[level], outputs[level - 1]]
            outputs[level] = cells.node(f"bottom_up{level}", level, sources)
        cells.end(outputs)
    return cells.graph()
