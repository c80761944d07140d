"""Operations one by one: which of them multiply and add, and what the others cost.

`work` is the project's own definition (see `fpn_bench.profiling.static`), asked of operations that have no further
parts; `fvcore_term` is what fvcore 0.1.5 adds to its sum, asked of operations as the model calls them.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Inputs = Tensor | Sequence[Any]
"""What a module is called with: a tuple is its positional arguments, anything else its only one."""

Cost = Callable[[Sequence[Any], Any], int]
"""(positional arguments, result) -> operations. The dispatcher leaves out trailing arguments at their defaults."""

# Ops that multiply and add, by name: what is reported when no formula covers one.
_MATMUL_LIKE = re.compile(
    r"conv(?!ert)|mm(?![a-z])|matmul|einsum|attention|lstm|gru|rnn|attn|cdist|tensordot|_trilinear(?!\d)"
    r"|(?<![a-z])(linear|bilinear|dot|vdot|mv|addmv|ger|addr|outer)(?![a-z0-9])"
)


def as_arguments(inputs: Inputs) -> tuple[Any, ...]:
    """The positional arguments that `inputs` stands for."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _name_of(func: Any) -> str:
    """Of an overload, such as ``torch.ops.aten.relu.default``, without torch's own namespace: "relu"."""
    return str(func.overloadpacket).removeprefix("aten.")


@functools.cache
def is_matmul_like(name: str) -> bool:
    """Whether an operation of this name multiplies and adds: one that has to be counted, or named."""
    return _MATMUL_LIKE.search(name) is not None


def _given(args: Sequence[Any], out: Any) -> int:
    """Values of the result; of the first where there are several."""
    result: Tensor = out if isinstance(out, Tensor) else out[0]
    return result.numel()


def _taken(args: Sequence[Any], out: Any) -> int:
    """Values of the first argument."""
    return _values(args[0])


def _values(tensor: Tensor) -> int:
    return tensor.numel()


def _times(factor: int, cost: Cost) -> Cost:
    return lambda args, out: factor * cost(args, out)


def _pool(dims: int) -> Cost:
    """Pooling over `dims` axes by a kernel that is the second argument; one number stands for all axes."""

    def cost(args: Sequence[Any], out: Any) -> int:
        kernel = args[1]
        area: int = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** dims
        return _given(args, out) * area

    return cost


_WORK: dict[str, Cost] = {
    # With stored statistics: scale and shift. With its own: two reductions and the centring on top.
    "batch_norm": lambda args, out: (5 if args[5] else 2) * _given(args, out),
    **dict.fromkeys(
        ("native_layer_norm", "native_group_norm"),
        _times(5, _given),
    ),
    # The maximum, its subtraction, the exponential, the sum, the division.
    **dict.fromkeys(("_softmax", "_log_softmax"), _times(5, _given)),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    "max_pool2d_with_indices": _pool(2),
    "max_pool3d_with_indices": _pool(3),
    **dict.fromkeys(
        (
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
            "adaptive_max_pool2d",
            "adaptive_max_pool3d",
            "linalg_vector_norm",
            "var_mean",
            "std_mean",
            "logsumexp",
            "cumsum",
        ),
        _taken,
    ),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"), _given),
    **dict.fromkeys(("_upsample_nearest_exact1d", "_upsample_nearest_exact2d"), _given),
    "upsample_linear1d": _times(2, _given),
    "upsample_bilinear2d": _times(4, _given),
    "_upsample_bilinear2d_aa": _times(4, _given),
    "upsample_trilinear3d": _times(8, _given),
    "upsample_bicubic2d": _times(16, _given),
    "_upsample_bicubic2d_aa": _times(16, _given),
    "grid_sampler_2d": _times(4, _given),
    "grid_sampler_3d": _times(8, _given),
    "scaled_dot_product_attention": lambda args, out: 5 * math.prod(args[0].shape[:-1]) * args[1].shape[-2],
    # Element-wise ones that torch does not tag so, and copies that it does.
    **dict.fromkeys(
        (
            "hardswish",
            "hardswish_",
            "mish_",
            "gelu_",
            "threshold_",
            "glu",
            "_prelu_kernel",
            "log_sigmoid_forward",
            "masked_fill_",
        ),
        _given,
    ),
    "clone": lambda args, out: 0,
}


@functools.cache
def work(func: Any) -> Cost | None:
    """What an operation computes beside multiply-adds; None where it only moves values, or is not known.

    Args:
        func: an overload, such as ``torch.ops.aten.relu.default``.
    """
    known = _WORK.get(_name_of(func))
    if known is not None:
        return known
    if torch.Tag.pointwise in func.tags:
        return _given
    return _taken if _reduces(func) else None


_REDUCTIONS = frozenset(
    """all amax amin aminmax any argmax argmin count_nonzero linalg_vector_norm logsumexp max mean min nansum norm prod
    std std_mean sum var var_mean""".split()  # noqa: SIM905
)


_REDUCTION_TAG: Any = getattr(torch.Tag, "reduction", None)


def _reduces(func: Any, tag: Any = _REDUCTION_TAG) -> bool:
    """Whether an overload reduces a tensor, as torch says, or by its name where torch is too old to say it."""
    if tag is not None:
        return tag in func.tags
    _, _, overload = str(func).removeprefix("aten.").partition(".")
    return _name_of(func) in _REDUCTIONS and overload != "other"  # max(x, other) is element by element


def _norm(affine: int) -> Cost:
    """A norm layer with its own statistics, whose weight is the argument at `affine`."""

    def cost(args: Sequence[Any], out: Any) -> int:
        return _values(args[0]) * (5 if len(args) > affine and args[affine] is not None else 4)

    return cost


def _batch_norm(args: Sequence[Any], out: Any) -> int:
    if args[5]:  # training
        return _norm(1)(args, out)
    return _values(args[0]) * (2 if args[1] is not None else 1)


_FVCORE_TERMS: dict[str, Cost] = {
    "batch_norm": _batch_norm,
    "group_norm": _norm(2),
    "layer_norm": _norm(2),
    "instance_norm": _norm(1),
    "upsample_nearest2d": _given,
    "upsample_bilinear2d": _times(4, _given),
    "adaptive_avg_pool2d": _taken,
    "grid_sampler": _times(4, _given),
}


@functools.cache
def fvcore_term(func: Any) -> Cost | None:
    """What fvcore adds to its sum of multiply-adds for an operation that the model itself calls; None for nothing.

    fvcore's own trace takes three times as long as the whole static profile, and fails on meta, which has no values.
    """
    return _FVCORE_TERMS.get(_name_of(func))
