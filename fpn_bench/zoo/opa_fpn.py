"""OPA-FPN: Liang, Wang, Tang, Hu, Ling, "OPANAS: One-Shot Path Aggregation Network Architecture Search", CVPR 2021.

The genome of the family is a directed acyclic graph whose nodes are whole pyramids. N0 is the laterals; every later
pyramid is the sum of what its paths make of the earlier ones; the neck's outputs are the sum of N1 ... Nk.

    genome = (("TD",), ("TD", "TD"), ("FS", "none", "skip"), ...)

Entry i (from 1) is the pyramid Ni and has exactly i path types; the j-th (from 0) is the path from Nj to Ni:

    none    no edge
    skip    Nj as it is
    TD      top-down: each level, with the path's upsampled result of the level above added, through a 3x3
    BU      bottom-up: each level, with the path's pooled result of the level below added, through a 3x3
    FS      fusing-splitting: the finer half is pooled into one map, the coarser half upsampled into one; both,
            concatenated at either size, go through one 3x3; the results are handed back to the levels of their halves
    SE      scale-equalising: 3x3 of the level + 3x3 stride 2 of the finer + upsampled 3x3 of the coarser, then ReLU;
            each of the three has one set of weights for all levels

Spelled compactly, in options and YAML: types separated by spaces (or commas), pyramids by ";", as in `FOUND`.
`parse_dag` reads either spelling and `format_dag` writes the compact one. Any number of pyramids from 1 is valid, and
so is any mix of types over any number of levels, as long as each pyramid has a path other than "none" (one without is
nothing: leave it out). On a single level TD, BU and FS are a 3x3 alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import (
    Activation,
    AdaptivePool,
    Conv,
    DeformableConv,
    Edge,
    GraphBuilder,
    Merge,
    NeckGraph,
    Op,
    Resample,
    ResizeToLevel,
)
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo.parts import (
    UPS,
    ActivationOption,
    ExtraRule,
    NormOption,
    UpOption,
    activation_ops,
    begin,
    check_option,
    conv_norm,
    extend,
    finish,
    laterals,
    norm_ops,
)
from fpn_bench.zoo.registry import neck

Dag = tuple[tuple[str, ...], ...]
PATHS = ("none", "skip", "TD", "BU", "FS", "SE")
FOUND = "TD; TD TD; FS none skip; BU skip none TD; BU none FS SE BU"
DeformableOption = Literal["none", "coarser", "all"]
POOL = Resample("max_pool")
DEFORMABLE: tuple[DeformableOption, ...] = ("none", "coarser", "all")


def parse_dag(dag: str | Sequence[Sequence[str]]) -> Dag:
    """The genome, from either spelling.

    Args:
        dag: compact, or one sequence of path types a pyramid.

    Raises:
        InputError: names the pyramid, what was expected and what it got.
    """
    if isinstance(dag, str):
        dag = [pyramid.replace(",", " ").split() for pyramid in dag.split(";")]
    if not isinstance(dag, Sequence) or not dag:
        raise InputError(f"expected at least one pyramid as dag, e.g. {FOUND!r}, got {dag!r}")
    for i, pyramid in enumerate(dag, start=1):
        if isinstance(pyramid, str) or not isinstance(pyramid, Sequence):
            raise InputError(f"expected pyramid N{i} of the dag to be a list of {i} path type(s), got {pyramid!r}")
        if len(pyramid) != i:
            raise InputError(
                f"expected {i} path(s) in pyramid N{i} of the dag, one from each earlier pyramid, N0 (the laterals) "
                f"first, got {len(pyramid)}: {' '.join(map(str, pyramid))!r}"
            )
        for j, path in enumerate(pyramid):
            if path not in PATHS:
                raise UnknownNameError(f"type of path N{j} -> N{i} in the dag:", str(path), PATHS)
        if set(pyramid) == {"none"}:
            raise InputError(f"pyramid N{i} of the dag has no path other than none; leave it out, or give it one")
    return tuple(tuple(pyramid) for pyramid in dag)


def format_dag(dag: Sequence[Sequence[str]]) -> str:
    """The compact spelling of a genome."""
    return "; ".join(" ".join(pyramid) for pyramid in dag)


def pyramid_dag(
    b: GraphBuilder,
    pyramid: Mapping[int, str],
    dag: Dag,
    channels: int,
    *,
    deformable: DeformableOption = "coarser",
    up: UpOption = "nearest",
    norm: NormOption = "none",
    activation: ActivationOption = "none",
    separable: bool = False,
) -> dict[int, str]:
    """Add a DAG of pyramids to a graph.

    Args:
        b: the graph so far.
        pyramid: N0; level -> name of a map of `channels`, each level above the one before.
        dag: from `parse_dag`.
        channels: width.
        deformable, up, norm, activation, separable: as the options of `opa_fpn`.

    Returns:
        The sum of all later pyramids, ``P{level}``: level -> name.
    """
    paths = _Paths(b, tuple(sorted(pyramid)), channels, deformable, up, norm, activation, separable)
    pyramids = [dict(pyramid)]
    for i, types in enumerate(dag, start=1):
        parts = [
            pyramids[j] if path == "skip" else paths.make(path, f"N{i}_{path}{j}_", pyramids[j])
            for j, path in enumerate(types)
            if path != "none"
        ]
        pyramids.append({k: paths.sum(f"N{i}_{k}", k, [part[k] for part in parts]) for k in pyramid})
    return {k: b.add(f"P{k}", k, *(n[k] for n in pyramids[1:])) for k in pyramid}


@dataclass(frozen=True)
class _Paths:
    """What the types of paths make of a pyramid; the fields are `pyramid_dag`'s."""

    b: GraphBuilder
    levels: tuple[int, ...]
    channels: int
    deformable: DeformableOption
    up: UpOption
    norm: NormOption
    activation: ActivationOption
    separable: bool

    def make(self, path: str, name: str, maps: Mapping[int, str]) -> dict[int, str]:
        """The pyramid at the end of a path of one type."""
        made = {"TD": self.top_down, "BU": self.bottom_up, "FS": self.fuse_split, "SE": self.equalise}
        return made[path](name, maps)

    def top_down(self, name: str, maps: Mapping[int, str]) -> dict[int, str]:
        return self._path(name, maps, reversed(self.levels), Resample(self.up))

    def bottom_up(self, name: str, maps: Mapping[int, str]) -> dict[int, str]:
        return self._path(name, maps, self.levels, POOL)

    def _path(self, name: str, maps: Mapping[int, str], levels: Iterable[int], step: Op) -> dict[int, str]:
        out: dict[int, str] = {}
        neighbour: tuple[Edge, ...] = ()
        for k in levels:
            out[k] = self.conv(f"{name}{k}", k, maps[k], *neighbour)
            neighbour = (Edge(out[k], (step,)),)
        return out

    def fuse_split(self, name: str, maps: Mapping[int, str]) -> dict[int, str]:
        if len(self.levels) == 1:
            return self.top_down(name, maps)
        half = (len(self.levels) + 1) // 2
        finer, coarser = self.levels[:half], self.levels[half:]
        up = (Resample(self.up),)
        low = self._pile(f"{name}low", maps, finer, POOL)
        high = self._pile(f"{name}high", maps, coarser[::-1], *up)
        mid, above = finer[-1], coarser[0]
        both = {
            mid: self.b.add(f"{name}cat{mid}", mid, low, Edge(high, up), merge=Merge("concat")),
            above: self.b.add(f"{name}cat{above}", above, Edge(low, (POOL,)), high, merge=Merge("concat")),
        }
        fused = self.shared(f"{name}conv", both, borrow=mid == self.levels[0])
        out = {k: self.b.then(f"{name}{k}", x, *self.behind) for k, x in fused.items()}
        out |= {k: self.b.add(f"{name}{k}", k, Edge(out[mid], up)) for k in finer[:-1]}
        return out | {k: self.b.add(f"{name}{k}", k, Edge(out[above], (POOL,))) for k in coarser[1:]}

    def _pile(self, name: str, maps: Mapping[int, str], levels: Sequence[int], step: Op) -> str:
        """The maps of neighbouring levels gathered at the last of them."""
        total = maps[levels[0]]
        for k in levels[1:]:
            total = self.b.add(f"{name}{k}", k, maps[k], Edge(total, (step,)))
        return total

    def equalise(self, name: str, maps: Mapping[int, str]) -> dict[int, str]:
        same = self.shared(f"{name}same", maps, borrow=True)
        higher = self.shared(f"{name}up", {k: maps[k] for k in self.levels[1:]}, borrow=True)
        lower = self._strided(f"{name}down", maps)
        out = {}
        for below, k, above in zip((None, *self.levels), self.levels, (*self.levels[1:], None), strict=False):
            edges = [Edge(same[k])]
            edges += [Edge(lower[k])] if below is not None else []
            edges += [Edge(higher[above], (Resample(self.up),))] if above is not None else []
            out[k] = self.b.add(f"{name}{k}", k, *edges, ops=(*norm_ops(self.norm), Activation("relu")))
        return out

    def _strided(self, word: str, maps: Mapping[int, str]) -> dict[int, str]:
        """One 3x3 of stride 2 for all levels but the finest, each read from the level below."""
        out = {}
        for below, k in pairwise(self.levels):
            if self.deformable == "none":
                out[k] = self.b.add(f"{word}{k}", k, Edge(maps[below], (self.plain(stride=2),)), shared=word)
            else:
                x = self.b.add(f"{word}_in{k}", k, Edge(maps[below], (Resample("subsample"),)))
                steer = Edge(maps[below], (offsets(stride=2),))
                steer_by = self.b.add(f"{word}_offsets{k}", k, steer, shared=f"{word}_offsets")
                out[k] = self.b.add(f"{word}{k}", k, x, steer_by, merge=self.deformed, shared=word)
        return out

    def shared(self, word: str, maps: Mapping[int, str], *, borrow: bool) -> dict[int, str]:
        """One 3x3 for all of the maps; with `borrow`, the finest is to have no offsets where `deformable` says so."""
        levels = sorted(maps)
        borrow = borrow and self.deformable == "coarser"
        if self.deformable == "none" or (borrow and len(levels) < 2):
            return {k: self.b.then(f"{word}{k}", maps[k], self.plain(), shared=word) for k in levels}
        names = {
            k: self.b.then(f"{word}_offsets{k}", maps[k], offsets(), shared=f"{word}_offsets") for k in levels[borrow:]
        }
        if borrow:
            above = Edge(names[levels[1]], (Resample("nearest"),))
            names[levels[0]] = self.b.add(f"{word}_offsets{levels[0]}", levels[0], above)
        return {k: self.b.add(f"{word}{k}", k, maps[k], names[k], merge=self.deformed, shared=word) for k in levels}

    def conv(self, name: str, level: int, *inputs: str | Edge) -> str:
        """The sum of the inputs through a 3x3 of its own."""
        if self.deformable == "none" or (self.deformable == "coarser" and level == self.levels[0]):
            return self.b.add(name, level, *inputs, ops=(self.plain(), *self.behind))
        x = self.sum(f"{name}_in", level, inputs)
        steer = self.b.then(f"{name}_offsets", x, offsets())
        return self.b.add(name, level, x, steer, merge=self.deformed, ops=self.behind)

    def sum(self, name: str, level: int, inputs: Sequence[str | Edge]) -> str:
        """The sum of the inputs; a lone one as it is."""
        first = inputs[0]
        return first if len(inputs) == 1 and isinstance(first, str) else self.b.add(name, level, *inputs)

    def plain(self, stride: int = 1) -> Conv:
        """A 3x3 without offsets."""
        return Conv(self.channels, stride=stride, bias=self.norm == "none", separable=self.separable)

    @property
    def deformed(self) -> DeformableConv:
        """A 3x3 with offsets."""
        return DeformableConv(self.channels, bias=self.norm == "none", modulated=False)

    @property
    def behind(self) -> tuple[Op, ...]:
        """What follows the 3x3 of a path."""
        return (*norm_ops(self.norm), *activation_ops(self.activation))


def offsets(stride: int = 1) -> Conv:
    """The 3x3 that makes the offsets of a deformable 3x3; small at first, so that the taps begin near their places."""
    return Conv(18, stride=stride, gain=0.01)


@neck
def opa_fpn(
    features: tuple[FeatureSpec, ...],
    out_levels: tuple[int, ...],
    channels: int,
    *,
    dag: str | Sequence[Sequence[str]] = FOUND,
    deformable: DeformableOption = "coarser",
    context: bool = True,
    up: UpOption = "nearest",
    norm: NormOption = "none",
    activation: ActivationOption = "none",
    separable: bool = False,
    extra: ExtraRule = "subsample",
    extra_inside: bool = False,
    extra_relu: bool = False,
) -> NeckGraph:
    """One-shot path aggregation FPN (Liang et al. 2021, section 3 and figure 2), after the authors' code.

    Laterals, the top one with its globally pooled context added, are the pyramid N0; later pyramids are sums of paths
    over the earlier ones (see the head of this module); the outputs are the sum of all pyramids but N0. Paths work on
    any number of levels; the halves that a fusing-splitting path works on are two and two of the paper's four.

    Deviations. The authors' stride-2 convolution of a scale-equalising path is deformable: here, a deformable 3x3 over
    every second pixel of the finer map, with offsets made at stride 2; the weights and costs are the same. Where the
    authors use the weights that a scale-equalising path shares without their offsets (at the finest level), here the
    offsets of the level above, upsampled, are used; the weights and costs are the same. The authors build an offset
    convolution for the finest level of each top-down and bottom-up path and never call it; here it is not built. With
    ResNet-50 and 112 channels the authors' modules hold 5,033,874 params, of which 7 x 18,162 never compute, and this
    graph 4,906,740; both do 39.587 GMAC at 640x640.

    Args:
        features: the backbone's features. All from the finest output level up take part, also those coarser than the
            last output.
        out_levels: contiguous; those above the backbone's are made by `extra`.
        channels: width of every level (112 and 160 in the paper).
        dag: the genome: compact, or lists of path types; the default is the architecture that the paper found.
        deformable: which 3x3 convs of the paths have offsets (Dai et al. 2017): ``"coarser"``: all but those whose
            result is at the finest level, as the authors'; ``"all"``; ``"none"``.
        context: the top lateral has its globally pooled 1x1 added.
        up: interpolation towards finer levels; towards coarser ones, maps are max-pooled.
        norm: norm layer behind the laterals, the context's 1x1, the convs of the paths (scale-equalising: behind the
            sum) and the extra ones; none in the paper.
        activation: behind every conv of the top-down, bottom-up and fusing-splitting paths; none in the paper.
        separable: 3x3 convs of the paths that are not deformable are depthwise separable.
        extra: rule for extra levels, see `fpn_bench.zoo.parts.finish`.
        extra_inside: the first extra level is made by a 3x3 stride-2 conv of the top lateral and takes part in the
            paths, as in the authors' RetinaNet form (with ``extra="on_output"`` for the next).
        extra_relu: ReLU before the second and later extra convs.
    """
    check_option("deformable", deformable, DEFORMABLE)
    check_option("up", up, UPS)
    b, used = begin(features, out_levels)
    pyramid = laterals(b, used, channels, norm)
    if extra_inside:
        last = min(used[-1] + 1, out_levels[-1])
        extend(b, pyramid, last, conv_norm(channels, 3, norm, stride=2), name="lateral")
    top = max(pyramid)
    if context:
        pooled = (*conv_norm(channels, 1, norm), AdaptivePool(1), ResizeToLevel("nearest"))
        pyramid[top] = b.add("context", top, pyramid[top], Edge(pyramid[top], pooled))
    outputs = pyramid_dag(
        b,
        pyramid,
        parse_dag(dag),
        channels,
        deformable=deformable,
        up=up,
        norm=norm,
        activation=activation,
        separable=separable,
    )
    return finish(b, outputs, out_levels, extra, channels, pyramid[top], relu=extra_relu, norm=norm)
