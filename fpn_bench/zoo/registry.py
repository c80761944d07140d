"""The registry of published necks: a name, a function that returns a graph, its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec, check_features

NeckFunction = Callable[..., NeckGraph]
_NECKS: dict[str, NeckFunction] = {}


def neck(function: NeckFunction) -> NeckFunction:
    """Register a family under its function's name.

    The function takes ``(features, out_levels, channels, *, option=default, ...)`` and returns a `NeckGraph`.
    """
    _NECKS[function.__name__] = function
    return function


def list_necks() -> list[str]:
    """Names of every neck family."""
    return sorted(_NECKS)


def options(name: str) -> dict[str, Any]:
    """Option -> default of one family, ``out_levels`` and ``channels`` aside.

    Raises:
        UnknownNameError: no such family.
    """
    parameters = inspect.signature(_function(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def describe(name: str) -> str:
    """The family's documentation.

    Raises:
        UnknownNameError: no such family.
    """
    return inspect.getdoc(_function(name)) or ""


def create_graph(
    name: str,
    features: Sequence[FeatureSpec],
    out_levels: Sequence[int] | None = None,
    channels: int = 256,
    **chosen: Any,
) -> NeckGraph:
    """A published neck over the features of a backbone.

    Args:
        name: family, see `list_necks`.
        features: the backbone's features, finest first.
        out_levels: contiguous levels to return, finest first; the features' own levels by default.
        channels: width of every output level.
        **chosen: the family's options, see `options`.

    Raises:
        UnknownNameError: unknown family or option, with the nearest known one.
        InputError: levels that the features cannot give, or an impossible value.
        GraphError: the graph the options describe cannot be built.
    """
    function = _function(name)
    known = options(name)
    for option in chosen:
        if option not in known:
            raise UnknownNameError(f"option of neck {name!r}", option, known, hint=f"fpn-bench necks show {name}")
    specs = check_features(features)
    levels = tuple(out_levels) if out_levels is not None else tuple(s.level for s in specs)
    _check_levels(levels, specs)
    if type(channels) is not int or channels < 1:
        raise InputError(f"channels={channels!r} came; a positive whole number is wanted")
    return function(specs, levels, channels, **chosen)


def _function(name: str) -> NeckFunction:
    if name not in _NECKS:
        raise UnknownNameError("neck", name, _NECKS, hint="fpn-bench necks")
    return _NECKS[name]


def _check_levels(levels: tuple[int, ...], features: tuple[FeatureSpec, ...]) -> None:
    if not levels:
        raise InputError("out_levels is empty; at least one level is wanted, e.g. (3, 4, 5)")
    if list(levels) != list(range(levels[0], levels[0] + len(levels))):
        raise InputError(f"out_levels {levels} came; contiguous levels, finest first, are wanted, e.g. (3, 4, 5)")
    has = [spec.level for spec in features]
    finer = [level for level in levels if level < has[0]]
    if finer:
        named = ", ".join(f"P{level}" for level in finer)
        raise InputError(
            f"{named} asked for, but the features start at P{has[0]}: ask the backbone for levels={levels}"
        )
    if levels[0] > has[-1]:
        raise InputError(f"out_levels {levels} came, but the features end at P{has[-1]}: begin at P{has[-1]} or finer")
    missing = [level for level in levels if level not in has and level < has[-1]]
    if missing:
        raise InputError(
            f"levels {missing} lie inside the pyramid, but the features have only {has}: ask the backbone for all"
        )
