"""Free merging cells: the search space of Ghiasi, Lin, Le, "NAS-FPN: Learning Scalable Feature Pyramid
Architecture for Object Detection", CVPR 2019, section 3.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

from fpn_bench.errors import InputError
from fpn_bench.graph import (
    Activation,
    AdaptivePool,
    Edge,
    GraphBuilder,
    Merge,
    NeckGraph,
    Op,
    Resample,
    ResizeToLevel,
    input_name,
)
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.free import FreeSpace, Gene, Genes, as_whole_numbers, as_words
from fpn_bench.zoo.parts import (
    ACTIVATIONS,
    ActivationOption,
    NormOption,
    begin,
    check_option,
    check_repeats,
    conv_norm,
    laterals,
    merge_ops,
)
from fpn_bench.zoo.registry import neck

CellOp = Literal["sum", "gate", "max", "fast_normalised", "concat"]
GateOption = Literal["coarser_max", "finer_avg"]
InputRule = Literal["max_pool", "conv_max_pool", "on_input", "on_lateral"]

CELL_OPS: tuple[CellOp, ...] = get_args(CellOp)
GATES: tuple[GateOption, ...] = get_args(GateOption)
INPUT_RULES: tuple[InputRule, ...] = get_args(InputRule)

SUM, PRODUCT = Merge("sum"), Merge("product")
UP, DOWN = (Resample("nearest"),), (Resample("max_pool"),)
POOLS: dict[GateOption, Literal["max", "avg"]] = {"coarser_max": "max", "finer_avg": "avg"}
OPENED: dict[GateOption, tuple[Op, ...]] = {
    gate: (AdaptivePool(1, pool), Activation("sigmoid"), ResizeToLevel("nearest")) for gate, pool in POOLS.items()
}

# -- the genome --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CellNode:
    """One merging of two maps.

    Attributes:
        level: pyramid level of the result, to which both maps are brought.
        op: how they are merged.
        inputs: numbers of two earlier maps, ascending; the cell's inputs have the numbers from 0, finest first, and
            its nodes those behind them.
    """

    level: int
    op: CellOp
    inputs: tuple[int, int]


@dataclass(frozen=True, slots=True)
class MergingCell:
    """A cell from one pyramid to the next of the same levels.

    Attributes:
        levels: of the pyramid, contiguous, finest first; at least two.
        nodes: in order; the last ones, one a level in any order, are the cell's outputs.

    Raises:
        InputError: names the node, what was expected and what it got.
    """

    levels: tuple[int, ...]
    nodes: tuple[CellNode, ...]

    def __post_init__(self) -> None:
        levels = checked_levels(self.levels)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "nodes", tuple(self.nodes))
        for number, node in enumerate(self.nodes, start=len(levels)):
            if node.level not in levels:
                raise _wrong(number, node, f"a level of P{levels[0]}-P{levels[-1]}", f"level {node.level}")
            if node.op not in CELL_OPS:
                raise _wrong(number, node, f"one of {', '.join(CELL_OPS)}", f"operation {node.op!r}")
            if not 0 <= node.inputs[0] < node.inputs[1] < number:
                expected = f"two ascending numbers of earlier maps, 0 to {number - 1}"
                raise _wrong(number, node, expected, f"inputs {node.inputs[0]},{node.inputs[1]}")
        _check_count(len(self.nodes), levels[0], levels[-1])
        outputs = [node.level for node in self.nodes[-len(levels) :]]
        if sorted(outputs) != list(levels):
            got = " ".join(f"P{level}" for level in outputs)
            raise InputError(f"expected one node of each level as the cell's last {len(levels)}, got {got}")

    @property
    def inner(self) -> int:
        """Number of nodes before the outputs."""
        return len(self.nodes) - len(self.levels)

    def __str__(self) -> str:
        """One line, e.g. ``P3-P4 P3=sum(0,1) P4=gate(1,2)``; `parse_cell` is the inverse."""
        nodes = [_node_text(node) for node in self.nodes]
        return " ".join([f"P{self.levels[0]}-P{self.levels[-1]}", *nodes])


def checked_levels(levels: object) -> tuple[int, ...]:
    """The levels of a cell as a tuple.

    Raises:
        InputError: what was expected and what it got.
    """
    levels = as_whole_numbers("levels", levels)
    if len(levels) < 2 or levels[0] < 0 or levels != tuple(range(levels[0], levels[0] + len(levels))):
        raise InputError(f"expected a cell over two or more contiguous levels, got {list(levels)}")
    return levels


def _check_count(nodes: int, finest: int, coarsest: int) -> None:
    least = coarsest - finest + 1
    if nodes < least:
        cell = f"a cell over P{finest}-P{coarsest}"
        raise InputError(f"expected at least {least} nodes in {cell}, one output for each level, got {nodes}")


def _node_text(node: CellNode) -> str:
    return f"P{node.level}={node.op}({node.inputs[0]},{node.inputs[1]})"


def _wrong(number: int, node: CellNode, expected: str, got: str) -> InputError:
    return InputError(f"cell node {number}, {_node_text(node)}: expected {expected}, got {got}")


_NUMBER = "(0|[1-9][0-9]{0,8})"
_HEAD = re.compile(f"P{_NUMBER}-P{_NUMBER}")
_NODE = re.compile(rf"P{_NUMBER}=(\w+)\({_NUMBER},{_NUMBER}\)")


def parse_cell(text: str) -> MergingCell:
    """The cell of a text such as ``P3-P5 P4=gate(1,2) P3=sum(0,3) P4=sum(3,4) P5=gate(3,5)``.

    Raises:
        InputError: names the word or node that is wrong.
    """
    head, *words = text.split(" ") if isinstance(text, str) else [repr(text)]
    levels = _HEAD.fullmatch(head)
    if levels is None:
        raise InputError(f"expected a cell to begin with its levels, e.g. P3-P7, got {head!r}")
    finest, coarsest = int(levels[1]), int(levels[2])
    if coarsest <= finest:
        raise InputError(f"expected a cell to begin with a finest and a coarser level, e.g. P3-P7, got {head!r}")
    nodes = []
    for number, word in enumerate(words, start=coarsest - finest + 1):
        match = _NODE.fullmatch(word)
        if match is None:
            raise InputError(f"cell node {number}: expected LEVEL=OP(INPUT,INPUT), e.g. P4=sum(1,5), got {word!r}")
        op: CellOp = match[2]  # type: ignore[assignment]  # MergingCell refuses others
        nodes.append(CellNode(int(match[1]), op, (int(match[3]), int(match[4]))))
    _check_count(len(nodes), finest, coarsest)  # before levels that no memory could hold are listed
    return MergingCell(tuple(range(finest, coarsest + 1)), tuple(nodes))


def nas_fpn_cell(levels: Iterable[int], inner: int = 2) -> MergingCell:
    """The cell that NAS-FPN found for P3-P7 (the paper's figure 6; `7@256` and its like), for any two levels or more.

    What it is for other levels is ours: each published node stands for the finest, second, middle, last but one or
    coarsest level; every level between is gated from the two nodes before it, as P5 is.

    Args:
        levels: of the pyramid.
        inner: nodes before the outputs, two in the paper. Fewer leave out the gate and then the sum behind it, more
            repeat the sum.
    """
    levels = checked_levels(tuple(levels))
    count = len(levels)
    finest, second, coarsest = levels[0], levels[1], levels[-1]
    nodes: list[CellNode] = []

    def add(level: int, op: CellOp, a: int, b: int) -> int:
        nodes.append(CellNode(level, op, (min(a, b), max(a, b))))
        return count + len(nodes) - 1

    mixed = 1
    for i in range(inner):
        mixed = add(second, "sum", 1, mixed) if i else add(second, "gate", 1, {2: 0, 3: 2}.get(count, count - 2))
    before, last = mixed, add(finest, "sum", 0, mixed)
    before, last = last, add(second, "sum", before, last)
    for level in levels[2:-2]:
        before, last = last, add(level, "gate", before, last)
    if count > 2:
        top = add(coarsest, "gate", mixed, last)
        if count > 3:
            add(levels[-2], "gate", last, top)
    return MergingCell(levels, tuple(nodes))


# -- the free space ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergingCells(FreeSpace[MergingCell]):
    """Every cell over given levels, of a given number of nodes and some operations.

    Genes: for each node its pair of inputs, its operation and, before the outputs, its level; for each output which
    of the levels still free it is. Each combination is another cell.

    Attributes:
        levels: of the pyramid, contiguous, finest first.
        nodes: of a cell; those beyond one a level come before the outputs. The published cell has 7.
        ops: to choose from.
        inner_levels: of the nodes before the outputs; all of `levels` when empty. Google's published space has no P3.

    Raises:
        InputError: what was expected and what it got.
    """

    levels: tuple[int, ...]
    nodes: int = 7
    ops: tuple[CellOp, ...] = ("sum", "gate")
    inner_levels: tuple[int, ...] = ()

    word: ClassVar[str] = "merging_cells"
    option: ClassVar[str] = "cell"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", checked_levels(self.levels))
        object.__setattr__(self, "inner_levels", as_whole_numbers("inner_levels", self.inner_levels))
        object.__setattr__(self, "ops", as_words("ops", self.ops, CELL_OPS))
        if type(self.nodes) is not int or self.nodes < len(self.levels):
            raise InputError(
                f"expected nodes to be a whole number of at least {len(self.levels)}, one for each level, got "
                f"{self.nodes!r}"
            )
        if not self.ops:
            raise InputError(f"expected at least one of {', '.join(CELL_OPS)} in ops, got none")
        if sorted(set(self.inner_levels) & set(self.levels)) != list(self.inner_levels):
            raise InputError(
                f"expected inner_levels to be ascending levels of {list(self.levels)}, got {list(self.inner_levels)}"
            )

    @cached_property
    def genes(self) -> Mapping[str, tuple[Gene, ...]]:
        """See `FreeSpace.genes`; ``"5.inputs"`` is the gene of node 5."""
        count = len(self.levels)
        genes: dict[str, tuple[Gene, ...]] = {}
        for number in range(count, count + self.nodes):
            genes[f"{number}.inputs"] = tuple(f"{a},{b}" for a, b in itertools.combinations(range(number), 2))
            genes[f"{number}.op"] = self.ops
            left = count + self.nodes - number
            genes[f"{number}.level"] = self._inner if left > count else tuple(range(left))
        return {name: values for name, values in genes.items() if len(values) > 1}

    @property
    def _inner(self) -> tuple[int, ...]:
        return self.inner_levels or self.levels

    @cached_property
    def _pairs(self) -> dict[str, tuple[int, int]]:
        return {f"{a},{b}": (a, b) for a, b in itertools.combinations(range(len(self.levels) + self.nodes), 2)}

    def compose(self, genes: Genes) -> MergingCell:
        """See `FreeSpace.compose`."""
        nodes: list[CellNode] = []
        free = list(self.levels)
        for number in range(len(self.levels), len(self.levels) + self.nodes):
            is_output = len(nodes) >= self.nodes - len(self.levels)
            level = int(genes.get(f"{number}.level", 0 if is_output else self._inner[0]))
            op = genes.get(f"{number}.op", self.ops[0])
            pair = self._pairs[str(genes.get(f"{number}.inputs", "0,1"))]
            nodes.append(CellNode(free.pop(level) if is_output else level, op, pair))  # type: ignore[arg-type]
        return MergingCell(self.levels, tuple(nodes))

    def _genes_of(self, genome: MergingCell) -> dict[str, Gene]:
        genes: dict[str, Gene] = {}
        free = list(self.levels)
        for number, node in enumerate(genome.nodes, start=len(self.levels)):
            is_output = number >= self.nodes
            genes[f"{number}.inputs"] = f"{node.inputs[0]},{node.inputs[1]}"
            genes[f"{number}.op"] = node.op
            genes[f"{number}.level"] = free.index(node.level) if is_output else node.level
            if is_output:
                free.remove(node.level)
        return {name: value for name, value in genes.items() if name in self.genes}

    def contains(self, genome: object) -> bool:
        """See `FreeSpace.contains`."""
        if not isinstance(genome, MergingCell) or genome.levels != self.levels or len(genome.nodes) != self.nodes:
            return False
        inner = genome.nodes[: genome.inner]
        return all(n.op in self.ops for n in genome.nodes) and all(n.level in self._inner for n in inner)

    @cached_property
    def size(self) -> int:
        """Number of cells."""
        return math.prod(len(values) for values in self.genes.values())

    @cached_property
    def published(self) -> MergingCell:
        """NAS-FPN's cell over these levels; what the space lacks becomes the nearest level, the first operation."""
        cell = nas_fpn_cell(self.levels, self.nodes - len(self.levels))
        ops = {op: op if op in self.ops else self.ops[0] for op in CELL_OPS}
        levels = [min(self._inner, key=lambda k: abs(k - node.level)) for node in cell.nodes[: cell.inner]]
        levels += [node.level for node in cell.nodes[cell.inner :]]
        nodes = zip(levels, cell.nodes, strict=True)
        return MergingCell(cell.levels, tuple(CellNode(level, ops[n.op], n.inputs) for level, n in nodes))

    @staticmethod
    def text(genome: MergingCell) -> str:
        """See `FreeSpace.text`."""
        return str(genome)

    @staticmethod
    def parse(text: str) -> MergingCell:
        """See `FreeSpace.parse`."""
        return parse_cell(text)


# -- from the cell to nodes --------------------------------------------------------------------------------------


def add_cell(
    b: GraphBuilder,
    cell: MergingCell,
    maps: Mapping[int, str],
    name: str,
    *,
    after: Iterable[Op],
    gate: GateOption = "coarser_max",
    last: bool = False,
) -> dict[int, str]:
    """Add the nodes of a cell; level -> name of its outputs.

    Maps are brought to a node's level by nearest upsampling or a max-pool of windows side by side. An output also
    takes up every earlier map of its level that nothing before it has read (TensorFlow's rule; the mmdet port says
    the same for the published cell, as sums behind its two cells without a convolution).

    Args:
        b: the graph so far.
        cell: the wiring.
        maps: level -> name of the cell's inputs, all of one width.
        name: opens the nodes' names; their numbers in the cell follow.
        after: operations behind each merge.
        gate: ``"coarser_max"``: coarser + finer * sigmoid(global max of coarser) (TensorFlow's, the first of two of
            one level counts as coarser); ``"finer_avg"``: finer + coarser * sigmoid(global mean of finer) (mmdet's).
        last: outputs are named ``P{level}``.
    """
    check_option("gate", gate, GATES)
    after = tuple(after)
    count = len(cell.levels)
    names = [maps[level] for level in cell.levels]
    levels = [*cell.levels, *(node.level for node in cell.nodes)]
    read: set[int] = set()
    for number, node in enumerate(cell.nodes, start=count):
        is_output = number >= len(cell.nodes)
        read.update(node.inputs)
        unread = [i for i in range(number) if is_output and levels[i] == node.level and i not in read]
        read.update(unread)
        own = f"P{node.level}" if last and is_output else f"{name}{number}"
        merge, mix = SUM, after
        inputs = [_moved(b, names[i], node.level) for i in node.inputs]
        if node.op == "gate":
            first_is_coarser = levels[node.inputs[0]] >= levels[node.inputs[1]]
            base, other = inputs if first_is_coarser == (gate == "coarser_max") else inputs[::-1]
            if base.ops:
                base = Edge(b.add(f"{own}_base", node.level, base))
            opened = Edge(base.source, OPENED[gate])
            inputs = [base, Edge(b.add(f"{own}_gate", node.level, other, opened, merge=PRODUCT))]
        elif node.op != "sum":
            merge, brought_back = merge_ops(node.op, b.channels(names[0]))
            mix = brought_back + after
            if unread:
                inputs = [Edge(b.add(f"{own}_merge", node.level, *inputs, merge=merge, ops=brought_back))]
                merge, mix = SUM, after
        inputs += [Edge(names[i]) for i in unread]
        names.append(b.add(own, node.level, *inputs, merge=merge, ops=mix))
    return {levels[number]: names[number] for number in range(len(cell.nodes), len(names))}


def _moved(b: GraphBuilder, source: str, level: int) -> Edge:
    if b.level(source) == level:
        return Edge(source)
    return Edge(source, UP if b.level(source) > level else DOWN)


# -- the family --------------------------------------------------------------------------------------------------


def input_pyramid(
    b: GraphBuilder,
    used: tuple[int, ...],
    out_levels: tuple[int, ...],
    channels: int,
    rule: InputRule,
    norm: NormOption,
) -> dict[int, str]:
    """Laterals of the backbone's levels, and the levels above it that take part in merging; level -> name.

    Args:
        b: an empty graph.
        used: levels of the backbone.
        out_levels: the coarsest says up to where levels are made, each of the one before.
        channels: width.
        rule: ``"max_pool"``: 2x2 max-pool of the lateral (NAS-FPN in TensorFlow); ``"conv_max_pool"``: a 1x1 conv
            before it (mmdet); ``"on_input"``: stride-2 3x3 conv of the backbone's last map; ``"on_lateral"``: of its
            lateral.
        norm: norm layer behind every convolution.
    """
    check_option("extra_lateral", rule, INPUT_RULES)
    maps = laterals(b, used, channels, norm)
    top = used[-1]
    source = input_name(top) if rule == "on_input" else maps[top]
    for level in range(top + 1, out_levels[-1] + 1):
        ops: tuple[Op, ...] = DOWN
        if rule == "conv_max_pool":
            ops = conv_norm(channels, 1, norm) + ops
        elif rule != "max_pool":
            ops = conv_norm(channels, 3, norm, stride=2)
        maps[level] = source = b.add(f"lateral{level}", level, Edge(source, ops))
    return maps


@neck
def merging_cells(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    cell: str = "nas_fpn",
    gate: GateOption = "coarser_max",
    repeats: int = 3,
    norm: NormOption = "batch",
    activation: ActivationOption = "relu",
    separable: bool = False,
    extra_lateral: InputRule = "max_pool",
) -> NeckGraph:
    """Stacked merging cells of any wiring (Ghiasi et al. 2019, section 3.2 and figure 2), for searching.

    A cell merges two maps at a time, each brought to the node's level, by a sum or by a gate that global pooling
    opens; activation, 3x3 convolution and norm follow each merge. Its last nodes are the next pyramid. Repeated cells
    are wired alike and have weights of their own.

    Deviations: the published space has sum and gate only; element-wise max, EfficientDet's fast normalised sum and
    concatenation with a 1x1 are further operations. Convolutions before a norm layer have no bias.

    Args:
        features: the backbone's features. All from the finest output level up take part in merging.
        out_levels: contiguous.
        channels: width of every level.
        cell: the wiring as one line, see `parse_cell`, over every level from the finest of `out_levels` to the coarsest
            of theirs and the backbone's; ``"nas_fpn"`` is the published one, fitted to the levels by `nas_fpn_cell`.
        gate: what global pooling is of, and what it opens, see `add_cell`.
        repeats: cells (7 in the paper's models, 3 in the search).
        norm: norm layer behind every convolution.
        activation: before each 3x3 convolution.
        separable: 3x3 convolutions are depthwise separable (NAS-FPNLite).
        extra_lateral: rule for inputs above the backbone's levels, see `input_pyramid`.
    """
    check_repeats(repeats)
    check_option("activation", activation, ACTIVATIONS)
    b, used = begin(features, out_levels)
    maps = input_pyramid(b, used, out_levels, channels, extra_lateral, norm)
    levels = tuple(maps)
    if len(levels) < 2:
        raise InputError(
            f"expected at least two levels for merging_cells to merge, got P{levels[0]} only; add a finer or a coarser "
            "one to out_levels"
        )
    wired = nas_fpn_cell(levels) if cell == "nas_fpn" else parse_cell(cell)
    if wired.levels != levels:
        got = f"P{wired.levels[0]}-P{wired.levels[-1]}"
        raise InputError(f"expected a cell over all merged levels, P{levels[0]}-P{levels[-1]}, got one over {got}")
    acts: tuple[Op, ...] = () if activation == "none" else (Activation(activation),)
    after = acts + conv_norm(channels, 3, norm, separable=separable)
    for turn in range(1, repeats + 1):
        maps = add_cell(b, wired, maps, f"cell{turn}_", after=after, gate=gate, last=turn == repeats)
    return b.graph(maps[level] for level in out_levels)
