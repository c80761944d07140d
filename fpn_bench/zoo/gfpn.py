"""GFPN: Jiang, Tan, Wang, Sun, Lin, Li, "GiraffeDet: A Heavy-Neck Paradigm for Object Detection", ICLR 2022."""

from __future__ import annotations

from typing import Literal

from fpn_bench.graph import Conv, Edge, Merge, NeckGraph, Op, Resample, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.blocks import SUM, Unit, check_factor, gain, scaled
from fpn_bench.zoo.parts import (
    ACTIVATIONS,
    UPS,
    ActivationOption,
    DownOption,
    NormOption,
    UpOption,
    activation_ops,
    begin,
    check_option,
    check_repeats,
    conv_norm,
    down_ops,
    extend,
)
from fpn_bench.zoo.registry import neck


@neck
def gfpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    depth: int = 7,
    widen: float = 0.7,
    skip: Literal["log2n", "dense", "none"] = "log2n",
    diagonals: bool = True,
    merge: Literal["concat", "sum", "fast_normalised", "softmax"] = "concat",
    up: UpOption = "nearest",
    down: DownOption = "max_pool",
    separable: bool = False,
    norm: NormOption = "batch",
    activation: ActivationOption = "silu",
    extra_input: DownOption = "max_pool",
) -> NeckGraph:
    """Generalized FPN (GiraffeDet, section 3.2 and figures 3 and 4), the authors' `GiraffeNeck`.

    ``2 * depth - 1`` layers, top-down and bottom-up in turns. A node reads the same level of the layers 1, 2, 4, 8 ...
    before ("log2n-link"), the node before it in its layer, and both diagonal neighbours of the layer before ("queen
    fusion"); it concatenates them: 1x1, activation, 3x3, norm. One more such node makes each output of the last layer.

    GiraffeDet-D7: five features of 128 ... 2048 channels, 256 channels, ``depth=7``; -D11: ``depth=11``; in the
    released configurations the 3x3 is not separable. Deviations: merges other than concatenation get a 1x1 on those
    edges that need one, and none behind (the code's do not fit); the separable form's norms have eps 1e-5 as the
    others (1e-3 in the code); initial weights about keep the spread of the maps, over dozens of nodes in a row.

    Args:
        features: the backbone's features, as in `fpn`.
        out_levels: contiguous; those above the backbone's are made by `extra_input` and take part in every layer.
        channels: width of every output.
        depth: half of one more than the layers.
        widen: width of the layers, in `channels`.
        skip: layers read at the same level: ``"log2n"``; ``"dense"``, all before; ``"none"``, only the one before.
        diagonals: diagonal neighbours are read.
        merge: how a node's inputs become one.
        up: interpolation towards finer levels.
        down: towards coarser levels; pools are 3x3 stride 2.
        separable: a node's 3x3 is depthwise separable.
        norm: norm layer behind every 3x3.
        activation: before every 3x3.
        extra_input: how a level above the backbone's is made of the one below, before the first layer.
    """
    check_option("skip", skip, ("log2n", "dense", "none"))
    check_option("merge", merge, ("concat", "sum", "fast_normalised", "softmax"))
    check_option("up", up, UPS)
    check_repeats(depth, "depth")
    check_factor("widen", widen)
    check_option("activation", activation, ACTIVATIONS)
    inner = scaled(channels, widen)
    b, used = begin(features, out_levels)

    def node(name: str, level: int, sources: list[str], width: int) -> str:
        edges = []
        for source in sources:
            ops: tuple[Op, ...] = ()
            if merge != "concat" and b.channels(source) != width:
                ops += conv_norm(width, 1, norm)
            if level < b.level(source):
                ops += (Resample(up),)
            elif level > b.level(source):
                ops += down_ops(down, width if ops else b.channels(source), norm)
            edges.append(Edge(source, ops))
        mix = (Conv(width, 1, bias=False),) if merge == "concat" else ()
        conv = Unit(norm, gain=gain(activation, merge, len(edges)))(width, 3, separable=separable, active=False)
        kind = Merge(merge) if len(edges) > 1 else SUM  # the learned weight of one input would have no gradient
        return b.add(name, level, *edges, merge=kind, ops=(*mix, *activation_ops(activation), *conv))

    inputs = {level: input_name(level) for level in used}
    extend(b, inputs, out_levels[-1], down_ops(extra_input, b.channels(inputs[used[-1]]), norm), name="input")
    layers = [inputs]
    for turn in range(1, 2 * depth):
        last, layer = layers[-1], dict[int, str]()
        order = sorted(inputs, reverse=turn % 2 == 1)
        before = last[order[0]]
        for level in order:
            sources = [layers[i][level] for i in _skips(turn, skip)] + [before]
            if diagonals:
                sources += [last[near] for near in (level + 1, level - 1) if near in last]
            layer[level] = before = node(f"layer{turn}_{level}", level, list(dict.fromkeys(sources)), inner)
        layers.append(layer)
    return b.graph([node(f"P{level}", level, [layers[-1][level]], channels) for level in out_levels])


def _skips(turn: int, skip: str) -> list[int]:
    """Layers whose node of the same level is read by layer `turn`; 0 are the inputs, which only the first reads."""
    if turn == 1:
        return [0]
    if skip == "log2n":
        return [turn - 2**n for n in reversed(range(turn.bit_length())) if turn - 2**n >= 1]
    return list(range(1, turn)) if skip == "dense" else [turn - 1]
