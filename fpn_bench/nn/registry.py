"""Which layer an operation of a neck graph becomes: ``@builds`` registers a function beside the layer.

    @builds(Activation)
    def _activation(op: Activation, channels: int, levels: int) -> nn.Module: ...  # the map's channels; levels up

    @builds(Attention)
    def _attention(merge: Attention, widths: Sequence[int]) -> nn.Module: ...  # channels of each input

A layer is called with a map [N, C, H, W], and with the (height, width) to reach as well where the operation changes the
level; that of a merge with the list of its maps. It has to know the text of its constructor's arguments, for the neck
is also exported as text: torch's own do, others do when they are made by `make_layer`. One whose whole work is an
expression of Python may have a method ``expression``, which gives it as text; the export then writes that instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from torch import nn

from fpn_bench.errors import InputError
from fpn_bench.graph.spec import MergeOp, Op, Operation
from fpn_bench.graph.walk import OpShape

_P = ParamSpec("_P")
_M = TypeVar("_M", bound=nn.Module)
_F = TypeVar("_F", bound=Callable[..., nn.Module])

BUILDERS: dict[type[Operation], Callable[..., nn.Module]] = {}
"""Operation -> function that makes its layer."""


def builds(operation: type[Operation]) -> Callable[[_F], _F]:
    """Register the function that makes the layer of an operation.

    Raises:
        InputError: the operation has one already.
    """

    def add(function: _F) -> _F:
        if operation in BUILDERS:
            raise InputError(f"expected one builder of {operation.__name__}, got a second, {function.__qualname__}")
        BUILDERS[operation] = function
        return function

    return add


def build_op(shape: OpShape) -> nn.Module:
    """The layer of a path operation.

    Raises:
        InputError: no builder is registered for it.
    """
    return _builder(shape.op)(shape.op, shape.channels, shape.levels)


def build_merge(merge: MergeOp, widths: Sequence[int]) -> nn.Module:
    """The layer of a merge operation on maps of `widths` channels.

    Raises:
        InputError: no builder is registered for it.
    """
    return _builder(merge)(merge, widths)


def _builder(item: Op | MergeOp) -> Callable[..., nn.Module]:
    cls = type(item)
    if cls not in BUILDERS:
        raise InputError(
            f"expected a builder of the operation {item.op_type!r}, found none; write one with @builds({cls.__name__}) "
            "beside its layer, and import that module"
        )
    return BUILDERS[cls]


def make_layer(cls: Callable[_P, _M], *args: _P.args, **kwargs: _P.kwargs) -> _M:
    """``cls(*args, **kwargs)`` that knows how it was made: the arguments stand as text in its attribute `arguments`."""
    layer = cls(*args, **kwargs)
    layer.arguments = ", ".join([*map(_text, args), *(f"{name}={_text(value)}" for name, value in kwargs.items())])  # type: ignore[assignment]
    return layer


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)
