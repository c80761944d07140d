"""Blocks that several families are made of: functions that add nodes and hand back the name of the last.

A block is no operation of the graph, only a way to write its nodes down. `Unit` says once what a network has behind
each of its convolutions; every block takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fpn_bench.errors import InputError
from fpn_bench.graph import (
    Attention,
    Conv,
    Edge,
    GraphBuilder,
    Merge,
    Norm,
    Op,
    PositionalEncoding,
    Resample,
)
from fpn_bench.zoo.parts import UPS, ActivationOption, NormOption, UpOption, activation_ops, check_option, norm_ops

SUM = Merge("sum")
CONCAT = Merge("concat")
Block = Callable[[str, str], str]  # (name, source) -> name

# Factor on the weights that keeps the variance of a unit-normal map through each activation (He et al. 2015).
GAINS: dict[ActivationOption, float] = {
    "none": 1.0,
    "relu": 1.41,
    "relu6": 1.41,
    "leaky_relu": 1.41,
    "gelu": 1.53,
    "silu": 1.68,
    "hard_swish": 1.74,
}
# A merge of n maps has n to the power of this times their spread.
_SPREADS = {"concat": 0.0, "sum": 0.5, "fast_normalised": -0.5, "softmax": -0.5}


def gain(activation: ActivationOption, merge: str, inputs: int) -> float:
    """Factor on the weights behind a merge and an activation that keeps the spread of the maps, however many nodes."""
    return GAINS[activation] * math.pow(inputs, -_SPREADS[merge])


def check_factor(option: str, value: object) -> None:
    """Refuse anything but a finite number above 0.

    Raises:
        InputError: it is anything else.
    """
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise InputError(f"expected {option} to be a finite number above 0, got {value!r}")


def scaled(channels: int, factor: float) -> int:
    """Channels times a factor, rounded down as the reference codes do; at least 1."""
    return max(1, int(channels * factor))


@dataclass(frozen=True, slots=True)
class Unit:
    """Convolution, norm, activation as one network has them; called, it is the operations.

    Attributes:
        norm: behind each convolution.
        activation: behind each norm.
        eps: of the norm.
        momentum: of the norm's running statistics.
        gain: factor on the initial weights.
    """

    norm: NormOption = "batch"
    activation: ActivationOption = "silu"
    eps: float = 1e-5
    momentum: float = 0.1
    gain: float = 1.0

    def __call__(
        self,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        separable: bool = False,
        active: bool = True,
    ) -> tuple[Op, ...]:
        """The operations; without the activation when not `active`."""
        normed = norm_ops(self.norm, eps=self.eps, momentum=self.momentum)
        conv = Conv(channels, kernel, stride, groups, bias=not normed, separable=separable, gain=self.gain)
        return (conv, *normed, *(activation_ops(self.activation) if active else ()))

    def depthwise(self, channels_in: int, channels: int, kernel: int, *, stride: int = 1) -> tuple[Op, ...]:
        """A depthwise unit and a pointwise one; unlike a separable `Conv`, with norm and activation behind both."""
        return self(channels_in, kernel, stride=stride, groups=channels_in) + self(channels)


def residual(b: GraphBuilder, name: str, source: str, ops: tuple[Op, ...]) -> str:
    """x + f(x)."""
    return b.add(name, b.level(source), source, Edge(source, ops))


def rep_block(
    b: GraphBuilder, name: str, source: str, channels: int, unit: Unit, *, kernel: int = 3, deploy: bool = False
) -> str:
    """Parallel k x k and 1x1 convolutions, each with its norm, summed, then one activation (RepVGG, Ding et al. 2021).

    Args:
        b: the graph so far.
        name: of the node.
        source: what it reads.
        channels: output channels.
        unit: the norm of both branches and the activation.
        kernel: of the larger convolution.
        deploy: the one k x k convolution with bias that the trained branches are folded into.
    """
    if deploy:
        return b.then(name, source, Conv(channels, kernel), *activation_ops(unit.activation))
    branches = (Edge(source, unit(channels, side, active=False)) for side in (kernel, 1))
    return b.add(name, b.level(source), *branches, ops=activation_ops(unit.activation))


def csp_layer(
    b: GraphBuilder,
    name: str,
    level: int,
    inputs: tuple[str | Edge, ...],
    channels: int,
    unit: Unit,
    block: Block,
    *,
    depth: int,
    expansion: float = 0.5,
    merge: Merge = CONCAT,
) -> str:
    """Cross stage partial layer (Wang et al. 2020): the concatenated inputs by two 1x1 paths, one of them with blocks.

    Args:
        b: the graph so far.
        name: of the last node; the others' names begin with it.
        level: of all its maps.
        inputs: concatenated, in this order.
        channels: output channels.
        unit: its convolutions.
        block: adds one block.
        depth: blocks.
        expansion: width of either path, in output channels.
        merge: of the two paths. A 1x1 brings them to `channels` (not behind a sum that has them already).
    """
    hidden = scaled(channels, expansion)
    x = b.add(f"{name}_in", level, *inputs, merge=CONCAT)
    short = b.then(f"{name}_short", x, *unit(hidden))
    main = b.then(f"{name}_main", x, *unit(hidden))
    for i in range(1, depth + 1):
        main = block(f"{name}_block{i}", main)
    return b.add(
        name, level, main, short, merge=merge, ops=unit(channels) if merge == CONCAT or hidden != channels else ()
    )


def transformer_layer(
    b: GraphBuilder, name: str, source: str, *, heads: int, feedforward: int, activation: ActivationOption = "gelu"
) -> str:
    """Transformer encoder layer over all pixels (Vaswani et al. 2017), norms behind the sums.

    Query and key, not the value, see the position, as in DETR (Carion et al. 2020).

    Args:
        b: the graph so far.
        name: of the last node; the others' names begin with it.
        source: what it reads; its channels are a multiple of 4.
        heads: at most; the largest number up to it that divides the channels is taken.
        feedforward: hidden channels between its two 1x1 convolutions.
        activation: between these.
    """
    level, width = b.level(source), b.channels(source)
    heads = max(n for n in range(1, heads + 1) if width % n == 0)
    placed = b.then(f"{name}_position", source, PositionalEncoding())
    query, key, value = (Edge(x, (Conv(width, 1),)) for x in (placed, placed, source))
    attended = b.add(f"{name}_attention", level, query, key, value, merge=Attention(heads), ops=[Conv(width, 1)])
    x = b.add(f"{name}_norm", level, source, attended, ops=[Norm("layer")])
    hidden = (Conv(feedforward, 1), *activation_ops(activation), Conv(width, 1))
    return b.add(name, level, x, Edge(x, hidden), ops=[Norm("layer")])


def concat_pan(
    b: GraphBuilder,
    maps: Mapping[int, str],
    last: int,
    *,
    up: UpOption,
    reduce: Callable[[int], tuple[Op, ...]],
    down: Callable[[int], tuple[Op, ...]],
    fuse: Callable[[str, int, tuple[str | Edge, ...]], str],
) -> tuple[dict[int, str], str]:
    """The YOLO form of PANet's two paths: neighbours are concatenated and a block fuses them.

    Args:
        b: the graph so far.
        maps: level -> name of what enters.
        last: coarsest level of the bottom-up path.
        up: interpolation of the top-down path.
        reduce: level -> operations on the map of that level before it goes down; the bottom-up path reads it there too.
        down: level -> operations from there to the next coarser one.
        fuse: (name, level, inputs) -> name; concatenates, makes one map of it.

    Returns:
        Level -> name of each result, and the name of the coarsest map as it went down.
    """
    check_option("up", up, UPS)
    top, *finer = sorted(maps, reverse=True)
    lateral = {top: maps[top]}
    for level in finer:
        above, ops = lateral[level + 1], reduce(level + 1)
        if ops:
            above = lateral[level + 1] = b.then(f"reduced{level + 1}", above, *ops)
        lateral[level] = fuse(f"top_down{level}", level, (Edge(above, (Resample(up),)), maps[level]))
    finest, *coarser = sorted(maps)
    outputs = {finest: lateral[finest]}
    for level in (level for level in coarser if level <= last):
        step = Edge(outputs[level - 1], down(level - 1))
        outputs[level] = fuse(f"bottom_up{level}", level, (step, lateral[level]))
    return outputs, lateral[top]
