"""Adapters: neck graphs that make the requested levels of a model that has other levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from fpn_bench.backbones.probe import Probe
from fpn_bench.errors import InputError
from fpn_bench.graph import Activation, Edge, GraphBuilder, NeckGraph, Norm, Op, Resample, TransposedConv, input_name
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.vocabulary import AdapterName

_NORM = Norm("layer", eps=1e-6)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a map of the trunk comes from.

    Attributes:
        index: of the map among those of timm's `forward_intermediates`.
        level: level whose grid it is put on.
        stride: input pixels a map pixel, before that.
    """

    index: int
    level: int
    stride: float


@dataclass(frozen=True)
class Plan:
    """How a backbone gives the requested levels.

    Attributes:
        features: of the trunk, finest first.
        sources: one for each of them.
        graph: the adapter over `features`; None where these are the requested levels.
    """

    features: tuple[FeatureSpec, ...]
    sources: tuple[Source, ...]
    graph: NeckGraph | None

    @property
    def out_features(self) -> tuple[FeatureSpec, ...]:
        """Output of the adapter, or of the trunk where there is none."""
        return self.features if self.graph is None else self.graph.out_features


def plan(found: Probe, levels: Sequence[int], adapter: AdapterName) -> Plan:
    """How a model gives `levels`.

    Args:
        found: the model.
        levels: wanted, finest first.
        adapter: see `create_backbone`.

    Raises:
        InputError: the levels are not valid, the model lacks one and `adapter` is "none", or it cannot be tapped.
    """
    wanted = tuple(levels)
    if not wanted or list(wanted) != sorted(set(wanted)) or min(wanted) < 0:
        raise InputError(f"expected each of the levels once, finest first, e.g. levels=(3, 4, 5), got {wanted}")
    if adapter not in get_args(AdapterName):
        raise InputError(f"expected adapter to be one of {', '.join(get_args(AdapterName))}, got {adapter!r}")
    if adapter == "taps":
        return _taps(found, wanted)
    own = {spec.level: spec for spec in found.features}
    missing = [level for level in wanted if level not in own]
    if missing and adapter == "none":
        raise InputError(
            f"backbone {found.name!r} has levels {', '.join(map(str, own))} "
            f"(strides {', '.join(str(s.stride) for s in own.values())}), not {', '.join(map(str, missing))}: "
            f"ask for levels={tuple(own)}, let adapter='simple' make the others or choose another backbone "
            "(`fpn-bench backbones` lists them)"
        )
    base = {level: _base(level, tuple(own)) for level in wanted}
    used = sorted(set(base.values()))
    strides = dict(zip(own, found.strides, strict=True))
    return Plan(
        features=tuple(own[level] for level in used),
        sources=tuple(Source(found.indices[level], level, strides[level]) for level in used),
        graph=_made(tuple(own[level] for level in used), base) if missing else None,
    )


def _base(level: int, own: tuple[int, ...]) -> int:
    """The level that it is made from: itself, or the next coarser one, or the coarsest."""
    return min((k for k in own if k >= level), default=max(own))


def _made(features: tuple[FeatureSpec, ...], base: dict[int, int]) -> NeckGraph:
    """Levels of one map each: the simple pyramid of Li et al., "Exploring Plain Vision Transformer Backbones for
    Object Detection", ECCV 2022, section 3, without the convolutions that a neck begins with anyway.

    A finer level is made by 2x2 transposed convolutions that halve the channels, LayerNorm and GELU between two of
    them, a coarser one by 2x2 max-pooling, once a level.
    """
    b = GraphBuilder(features)
    maps = {spec.level: input_name(spec.level) for spec in features}
    top = features[-1].level
    for level in range(top + 1, max(base) + 1):
        maps[level] = b.add(f"made{level}", level, Edge(maps[level - 1], (Resample("max_pool"),)))
    outputs = []
    for level, start in base.items():
        if level < start:
            ops: list[Op] = []
            for halvings in range(1, start - level + 1):
                ops += [] if halvings == 1 else [_NORM, Activation("gelu")]
                ops.append(TransposedConv(max(1, b.channels(maps[start]) >> halvings)))
            outputs.append(b.add(f"made{level}", level, Edge(maps[start], tuple(ops))))
        else:
            outputs.append(maps[level] if level > top else b.then(f"kept{level}", maps[level]))
    return b.graph(outputs)


def _taps(found: Probe, wanted: tuple[int, ...]) -> Plan:
    """Each level is another depth of a columnar model, the finest the shallowest, put on its level's grid by the trunk
    and normalised by the adapter: the depths have no norm of their own. Levels two and more above the model's own are
    pooled from the one below them.
    """
    if not found.columnar:
        raise InputError(
            f"backbone {found.name!r} has maps of several strides, and adapter='taps' is for those of one: "
            "leave it at adapter='simple'"
        )
    (own,), (stride,) = found.features, found.strides
    tapped = [level for level in wanted if level <= own.level + 1] or [own.level + 1]
    if len(tapped) > found.maps:
        raise InputError(f"backbone {found.name!r} has {found.maps} depths to tap, fewer than levels={wanted}")
    features = tuple(FeatureSpec(level, own.channels, 2**level) for level in tapped)
    sources = tuple(Source((i + 1) * found.maps // len(tapped) - 1, level, stride) for i, level in enumerate(tapped))
    b = GraphBuilder(features)
    normed = {level: b.then(f"normed{level}", input_name(level), _NORM) for level in tapped}
    source = normed[tapped[-1]]
    for level in range(tapped[-1] + 1, wanted[-1] + 1):
        source = normed[level] = b.add(f"pooled{level}", level, Edge(source, (Resample("max_pool"),)))
    return Plan(features, sources, b.graph([normed[level] for level in wanted]))
