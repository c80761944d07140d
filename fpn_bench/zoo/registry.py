"""The registry of published necks: a name, a function that returns a graph, its options."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec, check_features
from fpn_bench.zoo.unfit import UNFIT

NeckFunction = Callable[..., NeckGraph]
_F = TypeVar("_F", bound=NeckFunction)
_NECKS: dict[str, NeckFunction] = {}
_MAKE_LEVELS: set[str] = set()


@overload
def neck(function: _F, /) -> _F: ...


@overload
def neck(*, makes_levels: bool) -> Callable[[_F], _F]: ...


def neck(function: _F | None = None, /, *, makes_levels: bool = False) -> _F | Callable[[_F], _F]:
    """Register a family under its function's name: ``@neck``, or ``@neck(makes_levels=True)``.

    The function takes ``(features, out_levels, channels, *, option=default, ...)`` and returns a `NeckGraph`.

    Args:
        function: the family.
        makes_levels: it needs no feature at a level to make it: levels finer than every feature, or between two of
            them, may be asked of it.
    """

    def register(function: _F) -> _F:
        _NECKS[function.__name__] = function
        if makes_levels:
            _MAKE_LEVELS.add(function.__name__)
        return function

    return register if function is None else register(function)


def list_necks() -> list[str]:
    """Names of every neck family."""
    return sorted(_NECKS)


def list_unfit() -> dict[str, str]:
    """Published necks that cannot be a graph -> the reason, by name."""
    return dict(sorted(UNFIT.items()))


def options(name: str) -> dict[str, Any]:
    """Option -> default of one family, ``out_levels`` and ``channels`` aside.

    Raises:
        UnknownNameError: no such family.
    """
    parameters = inspect.signature(_function(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


@functools.cache
def choices(name: str) -> dict[str, tuple[str, ...]]:
    """Option -> the values listed for it, none where it takes others: numbers, booleans, lists.

    Raises:
        UnknownNameError: no such family.
    """
    hints = typing.get_type_hints(_function(name))
    return {
        option: typing.get_args(hints[option]) if typing.get_origin(hints[option]) is typing.Literal else ()
        for option in options(name)
    }


def _check_value(option: str, value: object, default: object, listed: tuple[str, ...]) -> None:
    """Refuse a value of another kind than the option's; what it must be besides, the family itself checks."""
    if listed:
        if value not in listed:
            raise UnknownNameError(f"value of {option}", str(value), listed)
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(f"expected {option} to be true or false, got {value!r}")
    elif isinstance(default, int) and type(value) is not int:
        raise InputError(f"expected {option} to be a whole number, got {value!r}")
    elif isinstance(default, float) and type(value) not in (int, float):
        raise InputError(f"expected {option} to be a number, got {value!r}")


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
        InputError: a published neck that is no graph, with the reason; levels that the features cannot give; an
            impossible value.
        GraphError: the graph the options describe cannot be built.
    """
    function = _function(name)
    known = options(name)
    for option, value in chosen.items():
        if option not in known:
            raise UnknownNameError(f"option of neck {name!r}", option, known, hint=f"fpn-bench necks show {name}")
        _check_value(option, value, known[option], choices(name)[option])
    specs = check_features(features)
    if not (out_levels is None or (isinstance(out_levels, Sequence) and not isinstance(out_levels, str))):
        raise InputError(
            f"expected out_levels to be a list of levels, finest first, e.g. [3, 4, 5], got {out_levels!r}"
        )
    levels = tuple(out_levels) if out_levels is not None else tuple(s.level for s in specs)
    _check_levels(levels, specs, makes_levels=name in _MAKE_LEVELS)
    if type(channels) is not int or channels < 1:
        raise InputError(f"expected channels to be a positive whole number, got {channels!r}")
    return function(specs, levels, channels, **chosen)


def _function(name: str) -> NeckFunction:
    if name in UNFIT:
        raise InputError(f"neck {name!r} cannot be a graph: {UNFIT[name]} (`fpn-bench necks` lists those that can)")
    if name not in _NECKS:
        raise UnknownNameError("neck", name, _NECKS, hint="fpn-bench necks")
    return _NECKS[name]


def _check_levels(levels: tuple[int, ...], features: tuple[FeatureSpec, ...], *, makes_levels: bool) -> None:
    if not levels:
        raise InputError("expected at least one level in out_levels, e.g. (3, 4, 5), got none")
    if any(type(level) is not int for level in levels):
        raise InputError(f"expected out_levels to be whole numbers, finest first, e.g. (3, 4, 5), got {levels!r}")
    if list(levels) != list(range(levels[0], levels[0] + len(levels))):
        raise InputError(f"expected out_levels to be contiguous, finest first, e.g. (3, 4, 5), got {levels}")
    has = [spec.level for spec in features]
    if levels[0] > has[-1]:
        raise InputError(f"expected out_levels to begin at P{has[-1]}, where the features end, or finer, got {levels}")
    if makes_levels:
        return
    finer = [level for level in levels if level < has[0]]
    if finer:
        named = ", ".join(f"P{level}" for level in finer)
        raise InputError(
            f"{named} asked for, but the features start at P{has[0]}: ask the backbone for levels={levels}"
        )
    missing = [level for level in levels if level not in has and level < has[-1]]
    if missing:
        raise InputError(
            f"levels {missing} lie inside the pyramid, but the features have only {has}: ask the backbone for all"
        )
