"""What every operation of a neck graph says of itself, and the registry of all operations.

An operation is a frozen dataclass of plain values, so that it can be written to JSON, compared and hashed. Its class
derives from `Op` (on an edge or behind a merge) or `MergeOp` (many maps to one), defines every abstract part and is
registered by ``@register``; nothing has a default, for a cost or an identity that is silently wrong spoils stored
results. Its torch module is registered beside the layer, by `fpn_bench.nn.registry.builds`. The page
``docs/extending/operation.md`` adds one.

Blocks (CSP, RepVGG, a transformer layer ...) are no operations: they are nodes made of these, see
`fpn_bench.zoo.blocks`.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from fpn_bench.errors import InputError
from fpn_bench.pyramid import ImageSize


class Operation(ABC):
    """What path and merge operations have in common.

    Attributes:
        op_type: its name in JSON and in the identity; unique, and never changed once graphs are stored.
    """

    __slots__ = ()
    op_type: ClassVar[str]

    def __post_init__(self) -> None:
        """Numbers in float fields become floats, and -0.0 becomes 0.0: what is equal must be spelled alike."""
        for name in _float_fields(type(self)):
            value = getattr(self, name)
            if type(value) is float or (type(value) is int and abs(value) < 2**53):
                object.__setattr__(self, name, float(value) + 0.0)

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether it has weights, which nodes can share."""

    @property
    @abstractmethod
    def symbol(self) -> str:
        """A few characters for drawings, e.g. ``3x3/2`` for a stride-2 convolution."""

    @property
    @abstractmethod
    def idle_fields(self) -> tuple[str, ...]:
        """Fields whose values make no difference to what this instance computes; they are left out of the identity."""


class Op(Operation):
    """One map to one, on an edge or behind a merge."""

    __slots__ = ()

    @property
    @abstractmethod
    def levels_moved(self) -> int:
        """Levels up the pyramid that it moves its map; such operations stand on edges only.

        0 for a `Resample`, which covers what the others on its edge leave.
        """

    @abstractmethod
    def validate(self, channels: int, levels: int) -> str | None:
        """What is wrong with its values behind `channels` channels and over `levels` levels up, or None."""

    @abstractmethod
    def out_width(self, channels: int, levels: int) -> int:
        """Channels of the map that it makes of one of `channels`, over `levels` levels up."""

    @abstractmethod
    def cost(self, channels: int, size: ImageSize) -> tuple[int, int]:
        """(params, MACs) on a map of `channels` and `size`, (height, width); see `fpn_bench.graph.cost`."""


class MergeOp(Operation):
    """Several maps of one size to one."""

    __slots__ = ()

    @property
    @abstractmethod
    def commutes(self) -> bool:
        """Whether the order of the inputs is only spelling."""

    @property
    @abstractmethod
    def is_identity_of_one(self) -> bool:
        """Whether a merge of one input is that input."""

    @abstractmethod
    def validate(self, widths: Sequence[int]) -> str | None:
        """What is wrong with its values over inputs of `widths` channels, or None."""

    @abstractmethod
    def out_width(self, widths: Sequence[int]) -> int:
        """Channels of the merged map."""

    @abstractmethod
    def cost(self, widths: Sequence[int], size: ImageSize) -> tuple[int, int]:
        """(params, MACs) on maps of `widths` channels and `size`, (height, width); see `fpn_bench.graph.cost`."""


OPS: dict[str, type[Op]] = {}
"""Every path operation by its `op_type`."""
MERGES: dict[str, type[MergeOp]] = {}
"""Every merge operation by its `op_type`."""

_C = TypeVar("_C", bound=type[Operation])


def register(cls: _C) -> _C:
    """Make an operation known: ``@register`` above ``@dataclass(frozen=True, slots=True)``.

    Raises:
        InputError: the class leaves a part out, is no frozen dataclass, has a field that JSON cannot hold, or takes the
            `op_type` of another.
    """
    missing = sorted({*cls.__abstractmethods__, *({"op_type"} - set(dir(cls)))})
    if missing:
        raise InputError(f"expected {cls.__name__} to define every part of an operation, it lacks {', '.join(missing)}")
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:
        raise InputError(
            f"expected {cls.__name__} to be a frozen dataclass; put @dataclass(frozen=True) below @register"
        )
    for name, expected in field_types(cls).items():
        if expected not in (int, float, bool, str) and not (isinstance(expected, frozenset) and expected):
            raise InputError(f"expected {cls.__name__}.{name} to be an int, float, bool, str or a Literal of strings")
    if cls.op_type in {**OPS, **MERGES}:
        raise InputError(f"expected an op_type of its own for {cls.__name__}, got {cls.op_type!r}, which is taken")
    if issubclass(cls, Op):
        OPS[cls.op_type] = cls
    elif issubclass(cls, MergeOp):
        MERGES[cls.op_type] = cls
    return cls


@functools.cache
def field_types(cls: Any) -> Mapping[str, Any]:
    """Field name -> int, float, bool, str, or the frozen set of strings of a Literal."""
    found = typing.get_type_hints(cls)
    return {
        f.name: found[f.name] if isinstance(found[f.name], type) else frozenset(_literals(found[f.name]))
        for f in dataclasses.fields(cls)
    }


@functools.cache
def _float_fields(cls: type) -> tuple[str, ...]:
    return tuple(name for name, expected in field_types(cls).items() if expected is float)


def _literals(hint: Any) -> Iterable[str]:
    for arg in typing.get_args(hint):
        yield from [arg] if isinstance(arg, str) else _literals(arg)


def values_off_default(item: Any) -> dict[str, Any]:
    """Fields that are not at their default."""
    return {
        f.name: getattr(item, f.name)
        for f in dataclasses.fields(item)
        if f.default is dataclasses.MISSING or getattr(item, f.name) != f.default
    }
