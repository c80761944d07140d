"""Whether the necks of a space can be built."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fpn_bench.errors import InputError, SpaceError
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.search.space.dimensions import ChoiceDimension, Choices, FreeDimension

if TYPE_CHECKING:
    from fpn_bench.search.space.semantics import Space

_TRIED = 256
"""Choice sets that are tried before a value counts as impossible."""


def check_buildable(space: Space, features: Sequence[FeatureSpec]) -> None:
    """See `Space.check`."""
    for i, choices in enumerate(space.necks):
        # One for a certain backbone need not fit the others.
        _check(space, f"necks[{i}]", [] if "backbone" in choices else [choices], features)
    if space.listed:
        return
    problem = _problem(space, space.some(_TRIED), features)
    if problem is not None:
        raise SpaceError(f"{space.source}: neck: no choice set can be built; the last: {problem}")
    for key, dimension in space.dimensions.items():
        if isinstance(dimension, ChoiceDimension):
            tried = {f".choices[{i}]": value for i, value in enumerate(dimension.values)}
        elif isinstance(dimension, FreeDimension):
            tried = {"": dimension.middle()}
        else:
            tried = {".range[0]": dimension.low, ".range[1]": dimension.high}
        for where, value in tried.items():
            _check(space, f"neck.{key}{where}", _with_value(space, key, value), features)


def _check(space: Space, path: str, tried: Iterable[Choices], features: Sequence[FeatureSpec]) -> None:
    problem = _problem(space, tried, features)
    if problem is not None:
        raise SpaceError(f"{space.source}: {path}: cannot be built: {problem}")


def _problem(space: Space, tried: Iterable[Choices], features: Sequence[FeatureSpec]) -> str | None:
    """None as soon as one can be built, else why the last cannot."""
    problem = None
    for choices in tried:
        try:
            space.to_graph(choices, features)
        except InputError as error:
            problem = f"{space.label(choices)}: {error}"
        else:
            return None
    return problem


def _with_value(space: Space, key: str, value: Any) -> Iterator[Choices]:
    rng = random.Random(0)
    drawn = (space.completed({key: value}, rng) for _ in range(_TRIED))
    return (choices for choices in drawn if key in choices)
