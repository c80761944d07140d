"""One text for all spellings of one network: the canonical form that a graph's id is the hash of.

Two graphs are the same network when one can be turned into the other by renaming nodes, reordering nodes, reordering
the inputs of a merge that commutes, adding or removing nodes that no output depends on, and moving operations along a
path that nothing else reads (a lateral that one node reads is the same network as that 1x1 on the node's own edge;
one that two nodes read is not, for its weights are shared). An input that nothing reads counts where a live map takes
its size from it.

Seen as different are graphs that compute the same in other ways: the same values by other numbers (two bounds on a
number of groups of which neither binds), an operation without weights done once for two readers or once for each, a
node with shared weights split in two.

The graph is first reduced (dead nodes dropped, private single-input nodes folded into the edge that reads them), then
labelled canonically: colours are refined from each vertex's label and neighbours until stable (Weisfeiler & Leman
1968), ties are broken by individualising each member of the smallest tied class in turn, and the least text wins
(McKay & Piperno 2014, "Practical graph isomorphism II", section 2). Members of a class that read and feed exactly
the same vertices are interchangeable, so one of them stands for all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fpn_bench.graph.merge_ops import Merge
from fpn_bench.graph.neck_graph import NeckGraph
from fpn_bench.graph.node import Node, input_name
from fpn_bench.graph.path_ops import Resample
from fpn_bench.graph.spec import MergeOp, Op, Operation, values_off_default
from fpn_bench.graph.walk import OpShape, sizing_level, used_levels


def canonical_form(graph: NeckGraph) -> str:
    """The canonical text; equal for two spellings of one network (see above), different for two networks."""
    return _Labelling(_reduce(graph)).best()


# -- reduction ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Path:
    """An edge whose every operation says which level it leads to, so that paths can be joined."""

    source: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Reduced:
    """Vertices by name: their label, and their incoming edges (source, position, text)."""

    labels: dict[str, str]
    edges: dict[str, list[tuple[str, int, str]]]


def _reduce(graph: NeckGraph) -> _Reduced:
    walked = {shapes.node.name: shapes for shapes in graph.walked}
    nodes = {name: shapes.node for name, shapes in walked.items()}

    def resolve(name: str) -> str:
        """The vertex whose map `name` stands for: itself, unless it passes its one input on unchanged."""
        while name in nodes and _is_bare(nodes[name]):
            name = nodes[name].inputs[0].source
        return name

    outputs = {resolve(name) for name in graph.outputs}
    members = Counter(node.shared for node in nodes.values() if node.shared and _learns(node))
    shared = {name: node.shared for name, node in nodes.items() if members[node.shared] > 1}
    # Every vertex either merges several paths or ends one: what follows a merge is a path of its own.
    merges: dict[str, tuple[Node, list[_Path]]] = {}
    ends: dict[str, tuple[Node, _Path]] = {}
    for name, node in nodes.items():
        if _is_bare(node):
            continue
        incoming = [
            _Path(resolve(edge.source), _texts(shapes))
            for edge, shapes in zip(node.inputs, walked[name].edges, strict=True)
        ]
        after = tuple(_op_text(op) for op in node.ops)
        if len(incoming) == 1 and node.merge.is_identity_of_one:
            ends[name] = node, _Path(incoming[0].source, incoming[0].texts + after)
        elif after:
            merges[f"{name}.merged"] = node, incoming  # no node's own name has a dot
            ends[name] = node, _Path(f"{name}.merged", after)
        else:
            merges[name] = node, incoming
    read = [(path.source, node.name) for node, incoming in merges.values() for path in incoming]
    read += [(path.source, node.name) for node, path in ends.values()]
    readers = Counter(source for source, _ in read)
    # What is folded into its reader must not join the reader's shared weights, nor share its own with the reader.
    alone = outputs | shared.keys() | {source for source, reader in read if reader in shared}
    private = {name for name in ends if readers[name] == 1 and name not in alone}

    def joined(path: _Path) -> _Path:
        source, parts = path.source, [path.texts]
        while source in private:
            inner = ends[source][1]
            source = inner.source
            parts.append(inner.texts)
        return _Path(source, tuple(text for texts in reversed(parts) for text in texts))

    labels: dict[str, str] = {}
    edges: dict[str, list[tuple[str, int, str]]] = {}
    sized = _sizing_levels(graph)
    for spec in graph.inputs:
        name = input_name(spec.level)
        if name in graph.reachable:
            labels[name] = f"input {spec.level} {spec.channels} {spec.stride}"
        elif spec.level in sized:
            labels[name] = f"size {spec.level}"
    for name, (node, incoming) in merges.items():
        labels[name] = f"node {node.level} {_merge_text(node.merge)}"
        edges[name] = [
            (path.source, 0 if node.merge.commutes else position, ";".join(path.texts))
            for position, path in enumerate(map(joined, incoming))
        ]
    for name in ends.keys() - private:
        node, path = ends[name][0], joined(ends[name][1])
        labels[name] = f"node {node.level}"
        edges[name] = [(path.source, 0, ";".join(path.texts))]
    for name in labels.keys() & (shared.keys() | {f"{name}.merged" for name in shared}):
        owner = f"{shared[name.removesuffix('.merged')]}.shared"
        labels[owner] = "shared"
        edges[name].append((owner, -1, "weights"))
    for name in outputs:
        labels[name] += " output"
    return _Reduced(labels, {name: edges.get(name, []) for name in labels})


def _sizing_levels(graph: NeckGraph) -> set[int]:
    """Levels of the inputs from whose maps some live map takes its size, also where their values are not read."""
    inputs = [spec.level for spec in graph.inputs]
    return {sizing_level(inputs, level) for level in used_levels(graph)}


def _is_bare(node: Node) -> bool:
    """Whether the node passes its one input on unchanged."""
    return len(node.inputs) == 1 and node.merge.is_identity_of_one and not node.ops and not node.inputs[0].ops


def _learns(node: Node) -> bool:
    """Whether the node has weights that it could share."""
    ops = (*node.ops, *(op for edge in node.inputs for op in edge.ops))
    return node.merge.learns or any(op.learns for op in ops)


def _texts(shapes: Iterable[OpShape]) -> tuple[str, ...]:
    """Of the operations on an edge; of a `Resample` with the level that it leads to."""
    return tuple(
        f"{_op_text(shape.op.over(shape.levels))}@{shape.level_after}"
        if isinstance(shape.op, Resample)
        else _op_text(shape.op)
        for shape in shapes
    )


@lru_cache(maxsize=4096)
def _op_text(op: Op) -> str:
    """Only what is not at its default, so that an operation that gains a field keeps the ids of older graphs."""
    return op.op_type + _text(op)


@lru_cache(maxsize=4096)
def _merge_text(merge: MergeOp) -> str:
    return ("" if isinstance(merge, Merge) else merge.op_type) + _text(merge)


def _text(item: Operation) -> str:
    """Fields off their default, less those that make no difference here."""
    values = {k: v for k, v in values_off_default(item).items() if k not in item.idle_fields}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


# -- labelling ---------------------------------------------------------------------------------------------------


_Kind = tuple[int, int]
"""Of an edge: its position, the rank of its text."""
_Colours = tuple[tuple[_Kind, int], ...]
_REST = -1
"""Stands for all vertices of a class that are not listed."""


class _Labelling:
    def __init__(self, reduced: _Reduced) -> None:
        names = list(reduced.labels)
        index = {name: i for i, name in enumerate(names)}
        self.labels = [reduced.labels[name] for name in names]
        edge_texts = sorted({text for ins in reduced.edges.values() for _, _, text in ins})
        rank = {text: i for i, text in enumerate(edge_texts)}
        self.edge_texts = edge_texts
        self.sources: list[list[tuple[_Kind, int]]] = [[] for _ in names]  # per vertex (kind of edge, neighbour)
        self.readers: list[list[tuple[_Kind, int]]] = [[] for _ in names]
        for name, ins in reduced.edges.items():
            for source, position, text in ins:
                kind = (position, rank[text])
                self.sources[index[name]].append((kind, index[source]))
                self.readers[index[source]].append((kind, index[name]))

    def best(self) -> str:
        """The least certificate."""
        ranks = {label: i for i, label in enumerate(sorted(set(self.labels)))}
        partition = _Partition([ranks[label] for label in self.labels])
        self._refine(partition, range(len(self.labels)))
        return self._search(partition)[0]

    def _around(self, v: int, partition: _Partition) -> tuple[_Colours, _Colours]:
        """The colours around a vertex."""
        starts, name = partition.starts, partition.name
        return (
            tuple(sorted([(kind, starts[name[other]]) for kind, other in self.sources[v]])),
            tuple(sorted([(kind, starts[name[other]]) for kind, other in self.readers[v]])),
        )

    def _refine(self, partition: _Partition, suspects: Iterable[int]) -> None:
        """Split classes by the colours around each vertex until nothing splits, in place.

        The order of the classes, and so every id, is that of rounds in which each looks at every vertex. What is
        looked at are only vertices beside one that changed its class in the round before: all others of a class still
        agree, so one stands for them. As the largest part of a class keeps the class's name, a vertex changes its class
        O(log n) times (Hopcroft 1971, "An n log n algorithm for minimizing states in a finite automaton").

        Args:
            partition: the classes.
            suspects: vertices that may differ from others of their class.
        """
        while suspects:
            by_class: dict[int, list[int]] = {}
            for v in suspects:
                if (name := partition.name[v]) in partition.tied:
                    by_class.setdefault(name, []).append(v)
            splits = []
            for name, seen in by_class.items():
                parts: dict[tuple[_Colours, _Colours], list[int]] = {}
                for v in seen:
                    parts.setdefault(self._around(v, partition), []).append(v)
                if len(seen) < len(partition.members[name]):
                    apart = set(seen)
                    other = next(v for v in partition.members[name] if v not in apart)
                    parts.setdefault(self._around(other, partition), []).append(_REST)
                if len(parts) > 1:
                    splits.append((name, [part for _, part in sorted(parts.items())]))
            moved = [v for name, parts_in_order in splits for v in partition.split(name, parts_in_order)]
            suspects = self._beside(moved)

    def _beside(self, vertices: Iterable[int]) -> set[int]:
        """The vertices that read one of these or are read by it."""
        return {u for v in vertices for _, u in (*self.sources[v], *self.readers[v])}

    def _single_out(self, partition: _Partition, v: int) -> None:
        """Put one vertex before the others of its class, and refine."""
        self._refine(partition, self._beside(partition.split(partition.name[v], [[v], [_REST]])))

    def _search(self, partition: _Partition) -> tuple[str, str]:
        """(least certificate below a refined partition, which is used up; certificate of the first leaf below it)."""
        while len(chosen := self._tied(partition)) == 1:
            self._single_out(partition, chosen[0])
        if not chosen:
            leaf = self._certificate(partition)
            return leaf, leaf
        branches = [partition.copy() for _ in chosen]
        for v, branch in zip(chosen, branches, strict=True):
            self._single_out(branch, v)
        best, first = self._search(branches[0].copy())
        for branch in branches[1:]:
            # A leaf equal to the first one is an automorphism that takes one member to the other: below both stands
            # the same, and without this, k equal branches would cost k! leaves.
            if self._first_leaf(branch.copy()) != first:
                best = min(best, self._search(branch)[0])
        return best, first

    def _first_leaf(self, partition: _Partition) -> str:
        while chosen := self._tied(partition):
            self._single_out(partition, chosen[0])
        return self._certificate(partition)

    def _tied(self, partition: _Partition) -> list[int]:
        """The smallest class of more than one vertex, one of each set of twins; nothing when all are told apart."""
        if not partition.tied:
            return []
        name = min(partition.tied, key=lambda name: (len(partition.members[name]), partition.starts[name]))
        members = sorted(partition.members[name])
        return list({(tuple(sorted(self.sources[v])), tuple(sorted(self.readers[v]))): v for v in members}.values())

    def _certificate(self, partition: _Partition) -> str:
        place = [partition.starts[name] for name in partition.name]  # each class has one member: 0, 1, 2 ...
        order = sorted(range(len(place)), key=place.__getitem__)
        return json.dumps(
            [
                [
                    self.labels[v],
                    sorted(
                        [position, self.edge_texts[text], place[source]] for (position, text), source in self.sources[v]
                    ),
                ]
                for v in order
            ],
            separators=(",", ":"),
        )


class _Partition:
    """Vertices in ordered classes. A class's colour is its start: how many vertices stand in the classes before it.

    Attributes:
        name: of each vertex's class.
        members, starts: of each class, by its name.
        tied: names of the classes of more than one vertex.
    """

    def __init__(self, colours: Sequence[int]) -> None:
        self.name = list(colours)
        self.members: dict[int, set[int]] = {}
        for v, colour in enumerate(colours):
            self.members.setdefault(colour, set()).add(v)
        self.starts: dict[int, int] = {}
        start = 0
        for colour in sorted(self.members):
            self.starts[colour] = start
            start += len(self.members[colour])
        self.tied = {name for name, members in self.members.items() if len(members) > 1}

    def copy(self) -> _Partition:
        """One that can be refined on its own."""
        other = _Partition(())
        other.name, other.starts, other.tied = self.name.copy(), self.starts.copy(), self.tied.copy()
        other.members = {name: members.copy() for name, members in self.members.items()}
        return other

    def split(self, name: int, parts: Sequence[list[int]]) -> list[int]:
        """Put classes in the place of one, in the order given; those that have changed their class.

        Args:
            name: of the class; its largest part keeps it.
            parts: of its vertices; `_REST` stands for all that are listed in none.
        """
        rest = self.members[name]
        start = self.starts[name]
        groups: list[set[int]] = [rest if _REST in part else set(part) for part in parts]
        for group in groups:
            if group is not rest:
                rest -= group
        moved: list[int] = []
        largest = max(groups, key=len)
        for group in groups:
            own = name
            if group is not largest:
                own = len(self.members)
                moved += group
                for v in group:
                    self.name[v] = own
            self.members[own], self.starts[own] = group, start
            start += len(group)
            (self.tied.add if len(group) > 1 else self.tied.discard)(own)
        return moved
