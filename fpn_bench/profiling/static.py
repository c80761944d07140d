"""What can be counted without running on real values: parameters and MACs, and what a MAC count leaves out.

One MAC is one multiply-add of a convolution or matrix product. Normalisation, activation, pooling, resampling and
element-wise arithmetic (a sum or a weighted sum of maps included) count nothing.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d  # noqa: F401  (registers the operation counted below)

from fpn_bench.errors import InputError

_log = logging.getLogger(__name__)

Inputs = Tensor | Sequence[Any]
"""What a module is called with: a tuple is its positional arguments, anything else its only one."""

# Ops that multiply and add, by name: what is reported when no formula covers one.
_MATMUL_LIKE = re.compile(
    r"conv(?!ert)|mm(?![a-z])|matmul|einsum|attention|lstm|gru|rnn|attn|cdist|tensordot|_trilinear(?!\d)"
    r"|(?<![a-z])(linear|bilinear|dot|vdot|mv|addmv|ger|addr|outer)(?![a-z0-9])"
)


@dataclass(frozen=True, slots=True)
class PartProfile:
    """One part of a model.

    Attributes:
        params: all parameters.
        trainable_params: those with a gradient.
        macs: multiply-adds of convolutions and matrix products.
        uncounted: matmul-like operations that no formula covers -> how often they ran; wanted empty.
    """

    params: int
    trainable_params: int
    macs: int
    uncounted: Mapping[str, int]

    @property
    def frozen_params(self) -> int:
        """Parameters without a gradient."""
        return self.params - self.trainable_params


@dataclass(frozen=True, slots=True)
class StaticProfile:
    """A model by its parts, in the order given.

    Attributes:
        parts: name -> profile.
        params, trainable_params: of all parts; a parameter that two parts share counts once.
    """

    parts: Mapping[str, PartProfile]
    params: int
    trainable_params: int

    @property
    def macs(self) -> int:
        """MACs of all parts."""
        return sum(part.macs for part in self.parts.values())

    @property
    def uncounted(self) -> dict[str, int]:
        """Matmul-like operations of all parts that no formula covers."""
        total: Counter[str] = Counter()
        for part in self.parts.values():
            total.update(part.uncounted)
        return dict(total)


@dataclass(frozen=True, slots=True)
class MacReport:
    """MACs by the second counter, fvcore.

    Attributes:
        macs: convolutions and matrix products only; comparable with `count_macs`.
        macs_fvcore_style: with fvcore's own terms for normalisation, adaptive pooling and resampling on top, as papers
            and timm's tables that used fvcore state them.
        uncounted: matmul-like operations that no handler covers -> how often they ran; wanted empty.
    """

    macs: int
    macs_fvcore_style: int
    uncounted: Mapping[str, int]


def count_params(module: nn.Module, *, trainable: bool | None = None) -> int:
    """Parameters of `module`, shared ones once.

    Args:
        module: on any device, meta included.
        trainable: True counts those with a gradient only, False those without, None all.
    """
    return sum(p.numel() for p in module.parameters() if trainable is None or p.requires_grad == trainable)


def count_macs(module: nn.Module, inputs: Inputs) -> int:
    """MACs of one call, counted on the meta device: no value is computed and `module` is left as it is.

    torch's FlopCounterMode counts FLOPs (2 a MAC); half of that is returned. Meta makes fused attention and LSTM
    decompose into products that have a formula, which the real CPU does not in every version.

    Args:
        module: on any device; in the mode (train or eval) it is to be counted in.
        inputs: a tuple is the positional arguments, anything else the only argument; tensors on any device, only their
            shapes and types are used.
    """
    macs, uncounted = _count(module, inputs)
    if uncounted:
        _log.warning(
            "MACs of %s leave out %s", type(module).__name__, ", ".join(f"{k} x{n}" for k, n in uncounted.items())
        )
    return macs


def static_profile(parts: Mapping[str, tuple[nn.Module, Inputs]]) -> StaticProfile:
    """Parameters and MACs of each part and of all.

    Args:
        parts: name -> (module, what it is called with, as in `count_macs`).

    Raises:
        InputError: no parts.
    """
    if not parts:
        raise InputError("no parts came to profile: give at least one, name -> (module, inputs)")
    profiles = {}
    for name, (module, inputs) in parts.items():
        macs, uncounted = _count(module, inputs)
        profiles[name] = PartProfile(count_params(module), count_params(module, trainable=True), macs, uncounted)
    together = nn.ModuleList(module for module, _ in parts.values())
    return StaticProfile(profiles, count_params(together), count_params(together, trainable=True))


def count_macs_fvcore(module: nn.Module, inputs: Inputs) -> MacReport:
    """MACs of one call by fvcore, which traces the module on its real values: the independent second counter.

    Handlers are added for fused attention, deformable convolutions and those with ``padding="same"``, which fvcore
    does not know.

    Args:
        module: with real values, in eval mode.
        inputs: as in `count_macs`, with real values.
    """
    # fvcore imports slowly and warns of its own use of torch.jit.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module, _arguments(inputs))
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.set_op_handle("aten::_convolution_mode", _convolution_mode_macs)
        analysis.set_op_handle("torchvision::deform_conv2d", _deformable_convolution_macs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with torch.no_grad():
            by_operator = analysis.by_operator()
    products = sum(count for op, count in by_operator.items() if op in _FVCORE_PRODUCTS)
    return MacReport(
        macs=int(products),
        macs_fvcore_style=int(sum(by_operator.values())),
        uncounted={op: n for op, n in sorted(analysis.unsupported_ops().items()) if _MATMUL_LIKE.search(op)},
    )


_FVCORE_PRODUCTS = frozenset(
    {"conv", "addmm", "bmm", "mm", "matmul", "linear", "einsum", "scaled_dot_product_attention", "deform_conv2d"}
)


def _count(module: nn.Module, inputs: Inputs) -> tuple[int, dict[str, int]]:
    twin = _meta_twin(module)
    arguments = tree_map_only(Tensor, lambda t: t.detach().to("meta"), _arguments(inputs))
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deformable_convolution_flops}
    )
    # The recorder is the outer mode: it sees what the counter executes after it has decomposed what it can.
    with torch.no_grad(), _MatmulRecorder(counter) as recorder, counter:
        twin(*arguments)
    return counter.get_total_flops() // 2, dict(sorted(recorder.uncounted.items()))


def _arguments(inputs: Inputs) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


class _MatmulRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the matmul-like operations for which the counter has no formula, and answers for BatchNorm.

    Half of a meta forward is torch's own shape check of BatchNorm in eval mode, whose map has the shape of its input.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: Counter[str] = Counter()
        self._known = counter.flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet not in self._known and _is_matmul_like(str(packet)):
            self.uncounted[str(packet)] += 1
        if func is torch.ops.aten._native_batch_norm_legit_no_training.default:
            nothing = args[0].new_empty(0)
            return torch.empty_like(args[0]), nothing, nothing
        return func(*args, **(kwargs or {}))


@functools.cache
def _is_matmul_like(name: str) -> bool:
    return _MATMUL_LIKE.search(name) is not None


def _meta_twin(module: nn.Module) -> nn.Module:
    """A copy of the module's structure whose tensors hold no values and want no gradients.

    Tensors are replaced by way of deepcopy's memo, so that no value is copied. A copy, because a forward on meta may
    leave meta tensors behind in the module (torchvision's anchors do).
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers, vars(part)):
            for tensor in held.values():
                if isinstance(tensor, Tensor):
                    memo[id(tensor)] = _shell(tensor)
    return copy.deepcopy(module, memo)


def _shell(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    # FlopCounterMode raises on some modules whose parameters have gradients (a Parameter given to a submodule).
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _sizes(value: Any) -> list[int]:
    """Shape of a traced tensor."""
    sizes: list[int] = value.type().sizes()
    return sizes


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """MACs of softmax(q k^T) v: q [..., Lq, E], k [..., Lk, E], v [..., Lk, Ev]."""
    query, key, value = (_sizes(v) for v in inputs[:3])
    return math.prod(query[:-2]) * query[-2] * key[-2] * (query[-1] + value[-1])


def _convolution_mode_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """MACs of a convolution whose padding is a word: every output value costs one kernel."""
    weight, out = _sizes(inputs[1]), _sizes(outputs[0])
    return Counter({"conv": out[0] * math.prod(out[2:]) * math.prod(weight)})


def _deformable_convolution_flops(x: Any, weight: Any, *rest: Any, out_shape: Any = None, **other: Any) -> int:
    """FLOPs of torchvision's deformable convolution, from shapes: every output value costs one kernel, as a plain one.

    Where the taps lie, and their bilinear interpolation, is no product of a matrix and counts nothing.
    """
    return 2 * int(math.prod(out_shape) * math.prod(weight[1:]))


def _deformable_convolution_macs(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_sizes(outputs[0])) * math.prod(_sizes(inputs[1])[1:])
