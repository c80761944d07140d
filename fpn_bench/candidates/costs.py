"""Static costs of a candidate in closed form: about a millisecond, nothing is built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from fpn_bench.candidates.backbone import LoadedBackbone
from fpn_bench.candidates.candidate import Candidate
from fpn_bench.detection.detector import Head
from fpn_bench.errors import InputError
from fpn_bench.graph import adapter_nodes, cost
from fpn_bench.profiling import count_macs, count_params
from fpn_bench.pyramid import FeatureSpec, level_sizes


@dataclass(frozen=True, slots=True)
class Costs:
    """Static costs of a detector for one image: `params`, and `macs` (one multiply-add is one).

    Attributes:
        params, macs: of the whole.
        adapter_params, adapter_macs: of what the neck reads of the backbone's adapter.
        neck_params, neck_macs: of the neck, without the adapter.
    """

    params: int
    macs: int
    adapter_params: int
    adapter_macs: int
    neck_params: int
    neck_macs: int


def costs_of(candidate: Candidate, loaded: LoadedBackbone, num_classes: int) -> Costs:
    """Params and MACs of a candidate on its backbone.

    Raises:
        InputError: the neck's levels have several widths.
    """
    whole = cost(candidate.graph, input_sizes=loaded.sizes)
    adapter = loaded.adapter_graph
    theirs = frozenset() if adapter is None else adapter_nodes(adapter)
    in_adapter = [node for node in whole.nodes if node.name in theirs]
    adapter_params, adapter_macs = sum(n.params for n in in_adapter), sum(n.macs for n in in_adapter)
    levels = [spec.level for spec in candidate.graph.out_features]
    sizes = level_sizes(loaded.sizes, levels)
    head_params, macs_a_point = _head_cost(
        common_width(candidate.graph.out_features), num_classes, candidate.head.convs
    )
    points = sum(sizes[level][0] * sizes[level][1] for level in levels)
    return Costs(
        params=loaded.params + whole.params + head_params,
        macs=loaded.macs + whole.macs + macs_a_point * points,
        adapter_params=adapter_params,
        adapter_macs=adapter_macs,
        neck_params=whole.params - adapter_params,
        neck_macs=whole.macs - adapter_macs,
    )


def common_width(features: tuple[FeatureSpec, ...]) -> int:
    """The one width of all levels, which the head is shared by.

    Raises:
        InputError: there are several.
    """
    widths = {spec.channels for spec in features}
    if len(widths) != 1:
        raise InputError(f"expected one width for all levels, for the head is shared, got {sorted(widths)}")
    return widths.pop()


@lru_cache(maxsize=1024)
def _head_cost(channels: int, num_classes: int, convs: int) -> tuple[int, int]:
    """(params, MACs a point of its maps) of the head, counted once on the meta device."""
    with torch.device("meta"):
        head: nn.Module = Head(channels, num_classes, convs)
        four_points = torch.empty(1, channels, 2, 2)  # one alone would be too few for the group norms
    return count_params(head), count_macs(head, ([four_points],)) // 4
