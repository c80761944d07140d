"""NAS-FPN: Ghiasi, Lin, Le, "NAS-FPN: Learning Scalable Feature Pyramid Architecture ...", CVPR 2019."""

from __future__ import annotations

import dataclasses

from fpn_bench.errors import InputError
from fpn_bench.graph import Conv, NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.merging_cells import GateOption, InputRule, add_cell, input_pyramid, nas_fpn_cell
from fpn_bench.zoo.parts import ActivationOption, NormOption, activation_ops, begin, check_repeats, norm_ops
from fpn_bench.zoo.registry import neck


@neck
def nas_fpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    repeats: int = 7,
    gate: GateOption = "coarser_max",
    sum_only: bool = False,
    norm: NormOption = "batch",
    activation: ActivationOption = "relu",
    separable: bool = False,
    extra_lateral: InputRule = "max_pool",
) -> NeckGraph:
    """The cell that NAS-FPN's search found (Ghiasi et al. 2019, section 4.2 and figure 6), repeated.

    Seven nodes, each of two maps merged by a sum or by a gate that global pooling opens, then activation, 3x3
    convolution (with a bias, as in both codes) and norm; the last five are the next pyramid, and also take up what no
    node has read of their level. It follows the authors' code in TensorFlow's TPU models; ``gate="finer_avg",
    extra_lateral="conv_max_pool"`` is the form of mmdet, whose published 7@256 has 29,990,144 params. Widths are 256
    or 384, repeats 7, or 5 in TensorFlow's model garden. `merging_cells` is the space it was found in.

    Deviations: the cell was found for P3 to P7; what it is over other levels is said at `nas_fpn_cell`. TensorFlow's
    laterals have a bias in front of their norm, are separable like the rest in its separable form, and are left out
    where a map has the width already; its batch norm has eps 1e-4 and momentum 0.997 (here 1e-5 and 0.9, as it counts);
    its DropBlock and its other node, a bottleneck block in the place of the 3x3, are not here.

    Args:
        features: the backbone's features. All from the finest output level up take part in merging.
        out_levels: contiguous.
        channels: width of every level.
        repeats: cells.
        gate: ``"coarser_max"``: coarser + finer * sigmoid(global max of coarser) (TensorFlow); ``"finer_avg"``: finer +
            coarser * sigmoid(global mean of finer) (mmdet).
        sum_only: every gate is a sum (TensorFlow's `use_sum_for_combination`).
        norm: norm layer behind every convolution.
        activation: before each 3x3 convolution.
        separable: 3x3 convolutions are depthwise separable (NAS-FPNLite).
        extra_lateral: rule for inputs above the backbone's levels, see `fpn_bench.zoo.merging_cells.input_pyramid`;
            unlike in `fpn_bench.zoo.parts.finish`, ``"max_pool"`` is of tiling 2x2 windows, and ``"on_lateral"`` starts
            from the bare 1x1.
    """
    check_repeats(repeats)
    b, used = begin(features, out_levels)
    maps = input_pyramid(b, used, out_levels, channels, extra_lateral, norm)
    if len(maps) < 2:
        raise InputError(f"expected at least two out_levels for nas_fpn to merge, got P{out_levels[0]} only")
    cell = nas_fpn_cell(tuple(maps))
    if sum_only:
        nodes = tuple(dataclasses.replace(node, op="sum") for node in cell.nodes)
        cell = dataclasses.replace(cell, nodes=nodes)
    after = (*activation_ops(activation), Conv(channels, 3, separable=separable), *norm_ops(norm))
    for turn in range(1, repeats + 1):
        maps = add_cell(b, cell, maps, f"cell{turn}_", after=after, gate=gate, last=turn == repeats)
    return b.graph(maps[level] for level in out_levels)
