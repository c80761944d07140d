"""BiFPN: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020."""

from __future__ import annotations

from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.cells import Cells, ExtraOption, FusionOption, LateralOption
from fpn_bench.zoo.parts import ActivationOption, NormOption, PoolOption, UpOption, check_repeats
from fpn_bench.zoo.registry import neck


@neck
def bifpn(
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
    """Bidirectional feature pyramid network (Tan et al. 2020, section 3.2 and figure 2 (d)).

    Every cell has a top-down and a bottom-up path; the bottom-up nodes between the ends also read their level's input.
    Each input has a learned weight; a separable 3x3 conv follows each merge. Levels above the backbone's are made
    before the first cell: 1x1 conv, then 3x3 stride-2 max-pool, then pools of that. It follows effdet's
    `efficientdet_*` (``redundant_bias=True`` for the parameters of `tf_efficientdet_*`, whose other padding is not
    reproduced). EfficientDet-D0 to D7 have widths 64, 88, 112, 160, 224, 288, 384, 384 and repeats 3, 4, 5, 6, 7, 7,
    8, 8; D6 and D7 take the plain sum.

    Deviation: sizes come from the maps, so that a model runs at any image size.

    Args:
        features: the backbone's features; those coarser than the last output are not read.
        out_levels: contiguous; all take part in every cell.
        channels: width.
        repeats: cells.
        fusion: ``"fast_normalised"`` (section 3.3), ``"softmax"`` or ``"sum"``.
        lateral: where a backbone map gets its 1x1: ``"edge"``, one on each edge of the first cell that reads it, as in
            the original; ``"level"``, one a level that all its readers share.
        norm: norm layer behind the laterals and the convs of the nodes; with none, the latter's initial weights keep
            the spread of the maps.
        activation: before each node's conv, or behind its norm.
        separable: the nodes' convs are depthwise separable.
        pre_activation: activation, conv, norm; else conv, norm, activation.
        redundant_bias: a bias also where a norm follows.
        up: interpolation towards finer levels.
        down: pool towards coarser levels, 3x3 stride 2.
        eps: of ``"fast_normalised"``; PaddleDetection's is 1e-5.
        per_channel: each channel has a weight of its own (google/automl's `channel_fastattn` and `channel_attn`).
        extra: how levels above the backbone's are made: ``"conv_pool"``, as said above; ``"strided_conv"``: the first
            by a stride-2 3x3 conv of the backbone's last map, and norm, the others by pools (PaddleDetection, with
            ``lateral="level"``).
    """
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
    check_repeats(repeats)
    first, last = out_levels[0], out_levels[-1]
    for _ in range(repeats):
        inputs = cells.begin()
        down_path = dict(inputs)
        for level in range(last - 1, first - 1, -1):
            down_path[level] = cells.node(f"top_down{level}", level, [inputs[level], down_path[level + 1]])
        outputs = {first: down_path[first]}
        for level in range(first + 1, last + 1):
            own = [inputs[level]] if level == last else [inputs[level], down_path[level]]
            outputs[level] = cells.node(f"bottom_up{level}", level, [*own, outputs[level - 1]])
        cells.end(outputs)
    return cells.graph()
