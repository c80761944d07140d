"""The second MAC counter: fvcore, which traces a model on its real values and shares no code with the first."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.ops import deform_conv2d  # noqa: F401  (registers the operation counted below)

from fpn_bench.profiling.operations import Inputs, as_arguments, is_matmul_like


@dataclass(frozen=True, slots=True)
class MacReport:
    """MACs by the second counter, fvcore.

    Attributes:
        macs: convolutions and matrix products only; comparable with `count_macs`.
        macs_fvcore_style: with fvcore's own terms for normalisation, adaptive pooling and resampling on top, as papers
            and timm's tables that used fvcore state them.
        macs_as_shipped: what fvcore says by itself, without the handlers added here.
        uncounted: matmul-like operations that no handler covers -> how often they ran; wanted empty.
    """

    macs: int
    macs_fvcore_style: int
    macs_as_shipped: int
    uncounted: Mapping[str, int]


def count_macs_fvcore(module: nn.Module, inputs: Inputs) -> MacReport:
    """MACs of one call by fvcore: the independent second counter.

    fvcore does not know several products; handlers are added for fused attention, convolutions with a word as padding,
    deformable ones, LSTMs, and batched products with an addend. Its own handlers of norm layers, pooling and resampling
    are kept, apart.

    Args:
        module: with real values, in eval mode.
        inputs: as in `count_macs`, with real values.
    """
    # fvcore imports slowly and warns of its own use of torch.jit.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module, as_arguments(inputs))
        for op, handler in _HANDLERS.items():
            analysis.set_op_handle(op, handler)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with torch.no_grad():
            by_operator = analysis.by_operator()
    total = int(sum(by_operator.values()))
    return MacReport(
        macs=int(sum(by_operator[op] for op in _PRODUCTS | _ADDED)),
        macs_fvcore_style=total,
        macs_as_shipped=total - int(sum(by_operator[op] for op in _ADDED)),
        uncounted={op: n for op, n in sorted(analysis.unsupported_ops().items()) if is_matmul_like(op)},
    )


def _sizes(value: Any) -> list[int]:
    """Shape of a traced tensor."""
    sizes: list[int] = value.type().sizes()
    return sizes


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """softmax(q k^T) v: q [..., Lq, E], k [..., Lk, E], v [..., Lk, Ev]."""
    query, key, value = (_sizes(v) for v in inputs[:3])
    return math.prod(query[:-2]) * query[-2] * key[-2] * (query[-1] + value[-1])


def _convolution_by_word(inputs: list[Any], outputs: list[Any]) -> int:
    """A convolution whose padding is a word: every output value costs one kernel."""
    weight, out = _sizes(inputs[1]), _sizes(outputs[0])
    return out[0] * math.prod(out[2:]) * math.prod(weight)


def _deformable_convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """As a plain one; where the taps lie, and their bilinear interpolation, is no product of a matrix."""
    return math.prod(_sizes(outputs[0])) * math.prod(_sizes(inputs[1])[1:])


def _lstm(inputs: list[Any], outputs: list[Any]) -> int:
    """Every matrix of every layer and direction, once a time step of every sequence: x [T, N, C] or [N, T, C]."""
    steps = math.prod(_sizes(inputs[0])[:-1])
    shapes = (_sizes(v) for v in inputs[2].node().inputs())
    return steps * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _added_product(inputs: list[Any], outputs: list[Any]) -> int:
    """b + x y of batches of matrices: x [N, I, K], y [N, K, J]."""
    left, right = _sizes(inputs[1]), _sizes(inputs[2])
    return math.prod(left) * right[-1]


_HANDLERS = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::_convolution_mode": _convolution_by_word,
    "aten::lstm": _lstm,
    "aten::baddbmm": _added_product,
    "torchvision::deform_conv2d": _deformable_convolution,
}
_ADDED = frozenset(op.partition("::")[2] for op in _HANDLERS)
_PRODUCTS = frozenset({"conv", "addmm", "bmm", "mm", "matmul", "linear", "einsum"})
