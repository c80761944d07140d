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

aten = torch.ops.aten

# Ops that multiply and add, by name: what is reported when no formula covers one.
_MATMUL_LIKE = re.compile(
    r"conv(?!ert)|mm(?![a-z])|matmul|einsum|attention|lstm|gru|rnn|attn|cdist|tensordot|_trilinear(?!\d)"
    r"|(?<![a-z])(linear|bilinear|dot|vdot|mv|addmv|ger|addr|outer)(?![a-z0-9])"
)


def as_arguments(inputs: Inputs) -> tuple[Any, ...]:
    """The positional arguments that `inputs` stands for."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


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


_WORK: dict[Any, Cost] = {
    # With stored statistics: scale and shift. With its own: two reductions and the centring on top.
    aten.batch_norm: lambda args, out: (5 if args[5] else 2) * _given(args, out),
    **dict.fromkeys(
        (aten.native_layer_norm, aten.native_group_norm),
        _times(5, _given),
    ),
    # The maximum, its subtraction, the exponential, the sum, the division.
    **dict.fromkeys((aten._softmax, aten._log_softmax), _times(5, _given)),
    aten.avg_pool2d: _pool(2),
    aten.avg_pool3d: _pool(3),
    aten.max_pool2d_with_indices: _pool(2),
    aten.max_pool3d_with_indices: _pool(3),
    **dict.fromkeys(
        (
            aten._adaptive_avg_pool2d,
            aten._adaptive_avg_pool3d,
            aten.adaptive_max_pool2d,
            aten.adaptive_max_pool3d,
            aten.linalg_vector_norm,
            aten.var_mean,
            aten.std_mean,
            aten.logsumexp,
            aten.cumsum,
        ),
        _taken,
    ),
    **dict.fromkeys((aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d), _given),
    **dict.fromkeys((aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d), _given),
    aten.upsample_linear1d: _times(2, _given),
    aten.upsample_bilinear2d: _times(4, _given),
    aten._upsample_bilinear2d_aa: _times(4, _given),
    aten.upsample_trilinear3d: _times(8, _given),
    aten.upsample_bicubic2d: _times(16, _given),
    aten._upsample_bicubic2d_aa: _times(16, _given),
    aten.grid_sampler_2d: _times(4, _given),
    aten.grid_sampler_3d: _times(8, _given),
    aten.scaled_dot_product_attention: lambda args, out: 5 * math.prod(args[0].shape[:-1]) * args[1].shape[-2],
    # Element-wise ones that torch does not tag so, and copies that it does.
    **dict.fromkeys(
        (
            aten.hardswish,
            aten.hardswish_,
            aten.mish_,
            aten.gelu_,
            aten.threshold_,
            aten.glu,
            aten._prelu_kernel,
            aten.log_sigmoid_forward,
            aten.masked_fill_,
        ),
        _given,
    ),
    aten.clone: lambda args, out: 0,
}


@functools.cache
def work(func: Any) -> Cost | None:
    """What an operation computes beside multiply-adds; None where it only moves values, or is not known.

    Args:
        func: an overload, such as ``torch.ops.aten.relu.default``.
    """
    known = _WORK.get(func.overloadpacket)
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
    packet, _, overload = str(func).removeprefix("aten.").partition(".")
    return packet in _REDUCTIONS and overload != "other"  # max(x, other) is element by element


def _norm(affine: int) -> Cost:
    """A norm layer with its own statistics, whose weight is the argument at `affine`."""

    def cost(args: Sequence[Any], out: Any) -> int:
        return _values(args[0]) * (5 if len(args) > affine and args[affine] is not None else 4)

    return cost


def _batch_norm(args: Sequence[Any], out: Any) -> int:
    if args[5]:  # training
        return _norm(1)(args, out)
    return _values(args[0]) * (2 if args[1] is not None else 1)


_FVCORE_TERMS: dict[Any, Cost] = {
    aten.batch_norm: _batch_norm,
    aten.group_norm: _norm(2),
    aten.layer_norm: _norm(2),
    aten.instance_norm: _norm(1),
    aten.upsample_nearest2d: _given,
    aten.upsample_bilinear2d: _times(4, _given),
    aten.adaptive_avg_pool2d: _taken,
    aten.grid_sampler: _times(4, _given),
}


def fvcore_term(func: Any) -> Cost | None:
    """What fvcore adds to its sum of multiply-adds for an operation that the model itself calls; None for nothing."""
    return _FVCORE_TERMS.get(func.overloadpacket)
