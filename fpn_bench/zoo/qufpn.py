"""QuFPN: quad feature pyramid network, pull request 580 to google/automl (https://ieeexplore.ieee.org/document/9225379)."""

from __future__ import annotations

from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.cells import Cells, ExtraOption, FusionOption, LateralOption
from fpn_bench.zoo.parts import ActivationOption, NormOption, PoolOption, UpOption, check_repeats
from fpn_bench.zoo.registry import neck


@neck
def qufpn(
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
    """Quad feature pyramid network, as effdet's `qufpn_fa` and `qufpn_sum` (`efficientdet_q0` to `q2`).

    Two pairs of opposite paths over the same inputs, top-down then bottom-up (a BiFPN cell) and its mirror, bottom-up
    then top-down; each level's two results are merged, always by fast normalised weights. The cells are EfficientDet's.

    Args:
        features: the backbone's features; those coarser than the last output are not read.
        out_levels: contiguous; all take part in every cell.
        channels: width.
        repeats: cells.
        fusion: ``"fast_normalised"``, ``"softmax"`` or ``"sum"`` of a node's inputs (in the four paths).
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
        per_channel: each channel has a weight of its own (in the four paths).
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
        down_path = dict(inputs)
        for level in range(last - 1, first - 1, -1):
            down_path[level] = cells.node(f"top_down{level}", level, [inputs[level], down_path[level + 1]])
        one = {first: down_path[first]}
        for level in range(first + 1, last + 1):
            own = [inputs[level]] if level == last else [inputs[level], down_path[level]]
            one[level] = cells.node(f"bottom_up{level}", level, [*own, one[level - 1]])
        up_path = dict(inputs)
        for level in range(first + 1, last + 1):
            up_path[level] = cells.node(f"mirror_up{level}", level, [inputs[level], up_path[level - 1]])
        two = {last: up_path[last]}
        for level in range(last - 1, first - 1, -1):
            own = [inputs[level]] if level == first else [inputs[level], up_path[level]]
            two[level] = cells.node(f"mirror_down{level}", level, [*own, two[level + 1]])
        cells.end({level: cells.node(f"quad{level}", level, [one[level], two[level]], cells.quad) for level in inputs})
    return cells.graph()
