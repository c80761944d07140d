"""What can be counted without running on real values: parameters, MACs, other work, and the maps in between.

A forward on the meta device, where tensors have shapes and no values, is watched operation by operation. What is
counted, and how:

- `macs`: the multiply-adds of convolutions, linear layers, matrix products and attention, one each; a bias is free.
- `other_ops`: what everything else computes. An element-wise operation costs 1 a value it gives. A norm layer costs 2 a
  value with stored statistics (scale, shift) and 5 where it computes its own (two reductions more, and the centring);
  softmax 5. Pooling costs 1 a value it looks at (k * k a value it gives; one a value it takes where it is adaptive), a
  reduction 1 a value it takes. Resampling costs, a value it gives, the values that it weighs: 1 for nearest, 2 for
  linear, 4 for bilinear, 8 for trilinear, 16 for bicubic. What only moves values (views, copies, padding,
  concatenation, indexing) costs nothing.
- `activation_elements`: values of all results that are stored anew; a view or an operation in place stores none.
- `macs_fvcore_style`: `macs` and what fvcore adds to them for norm layers, adaptive average pooling, resampling and
  grid sampling, by its formulas: the figure that its users publish.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry
from torchvision.ops import deform_conv2d  # noqa: F401  (registers the operation counted below)

from fpn_bench._compat import TorchDispatchMode, tree_iter, tree_map_only
from fpn_bench.errors import InputError
from fpn_bench.profiling.operations import Inputs, as_arguments, fvcore_term, is_matmul_like, work

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModuleProfile:
    """A module with all that it holds and calls.

    Attributes:
        params: all parameters; one that several modules share stands at the first.
        trainable_params: those with a gradient.
        param_bytes: bytes of all parameters. Buffers, such as running statistics, are not among them.
        macs: multiply-adds of convolutions and matrix products.
        macs_fvcore_style: what fvcore's own sum would be.
        other_ops: element-wise operations, norm layers, pooling, resampling.
        activation_elements: values of all results that are stored anew.
    """

    params: int
    trainable_params: int
    param_bytes: int
    macs: int
    macs_fvcore_style: int
    other_ops: int
    activation_elements: int

    @property
    def frozen_params(self) -> int:
        """Parameters without a gradient."""
        return self.params - self.trainable_params


@dataclass(frozen=True, slots=True)
class PartProfile(ModuleProfile):
    """One part of a model.

    Attributes:
        peak_activation_bytes: most bytes of maps at one time in a forward without gradients: the inputs, which the
            caller holds throughout, and every result until nothing refers to it. Parameters, buffers and what a kernel
            needs for itself are not among them; attention counts as one operation, as fused kernels run it.
        uncounted: matmul-like operations that no formula covers -> how often they ran; wanted empty.
        modules: path within the part -> what the module there costs; ``""`` is the part itself. A module has all that
            its submodules have and what it computes itself. One at several paths computes where it was called.
    """

    peak_activation_bytes: int
    uncounted: Mapping[str, int]
    modules: Mapping[str, ModuleProfile]


@dataclass(frozen=True, slots=True)
class StaticProfile:
    """A model by its parts, in the order given.

    Attributes:
        parts: name -> profile.
        params, trainable_params, param_bytes: of all parts; a parameter that two parts share counts once.
    """

    parts: Mapping[str, PartProfile]
    params: int
    trainable_params: int
    param_bytes: int

    @property
    def macs(self) -> int:
        """MACs of all parts."""
        return sum(part.macs for part in self.parts.values())

    @property
    def macs_fvcore_style(self) -> int:
        """What fvcore's own sum over all parts would be."""
        return sum(part.macs_fvcore_style for part in self.parts.values())

    @property
    def other_ops(self) -> int:
        """Other operations of all parts."""
        return sum(part.other_ops for part in self.parts.values())

    @property
    def activation_elements(self) -> int:
        """Values of all results, over all parts."""
        return sum(part.activation_elements for part in self.parts.values())

    @property
    def peak_activation_bytes(self) -> int:
        """The highest peak of a part: they run one after the other, each on what the one before it gives."""
        return max(part.peak_activation_bytes for part in self.parts.values())

    @property
    def uncounted(self) -> dict[str, int]:
        """Matmul-like operations of all parts that no formula covers."""
        total: Counter[str] = Counter()
        for part in self.parts.values():
            total.update(part.uncounted)
        return dict(total)


def count_params(module: nn.Module, *, trainable: bool | None = None) -> int:
    """Parameters of `module`, shared ones once.

    Args:
        module: on any device, meta included.
        trainable: True counts those with a gradient only, False those without, None all.
    """
    return sum(p.numel() for p in module.parameters() if trainable is None or p.requires_grad == trainable)


def count_macs(module: nn.Module, inputs: Inputs) -> int:
    """MACs of one call, counted on the meta device: no value is computed and `module` is left as it is.

    The formulas are those of torch's FlopCounterMode, whose total is twice this: it counts FLOPs, 2 a MAC. Meta makes
    an LSTM decompose into products that have a formula, which the real CPU does not.

    Args:
        module: on any device; in the mode (train or eval) it is to be counted in.
        inputs: a tuple is the positional arguments, anything else the only argument; tensors on any device, only their
            shapes and types are used.
    """
    recorder, _ = _record(module, inputs)
    if recorder.uncounted:
        left_out = ", ".join(f"{name} x{n}" for name, n in sorted(recorder.uncounted.items()))
        _log.warning("MACs of %s leave out %s", type(module).__name__, left_out)
    return recorder.macs


def static_profile(parts: Mapping[str, tuple[nn.Module, Inputs]]) -> StaticProfile:
    """Parameters, MACs, other operations and activations of each part, of each of its modules, and of all.

    Args:
        parts: name -> (module, what it is called with, as in `count_macs`).

    Raises:
        InputError: no parts.
    """
    if not parts:
        raise InputError("expected at least one part to profile, name -> (module, inputs), got none")
    profiles = {name: _profile_part(module, inputs)[0] for name, (module, inputs) in parts.items()}
    return _together(profiles, [module for module, _ in parts.values()])


def static_profile_in_a_row(parts: Mapping[str, nn.Module], inputs: Inputs) -> StaticProfile:
    """The same of parts that run one after the other; nothing runs but on meta.

    Args:
        parts: name -> module; each takes, as its only argument, the sequence of maps that the one before it gives.
        inputs: what the first is called with.

    Raises:
        InputError: no parts.
    """
    if not parts:
        raise InputError("expected at least one part to profile, name -> module, got none")
    profiles = {}
    for name, module in parts.items():
        profiles[name], outputs = _profile_part(module, inputs)
        inputs = (list(outputs) if isinstance(outputs, Sequence) else outputs,)
    return _together(profiles, list(parts.values()))


def _together(profiles: Mapping[str, PartProfile], modules: Sequence[nn.Module]) -> StaticProfile:
    every = list(nn.ModuleList(modules).parameters())
    return StaticProfile(
        profiles,
        params=sum(p.numel() for p in every),
        trainable_params=sum(p.numel() for p in every if p.requires_grad),
        param_bytes=sum(p.nbytes for p in every),
    )


def _profile_part(module: nn.Module, inputs: Inputs) -> tuple[PartProfile, Any]:
    """The profile, and what the part gives, on meta."""
    recorder, outputs = _record(module, inputs)
    # Per path, in the order of ModuleProfile's fields. What a path has of its own is added to all that hold it.
    totals: dict[str, list[int]] = {path: [0] * 7 for path, _ in module.named_modules()}

    def add(path: str, *own: int) -> None:
        while True:
            held = totals.setdefault(path, [0] * 7)
            for i, value in enumerate(own):
                held[i] += value
            if not path:
                return
            path = path.rpartition(".")[0]

    for name, parameter in module.named_parameters():
        values = parameter.numel()
        add(name.rpartition(".")[0], values, values * parameter.requires_grad, parameter.nbytes, 0, 0, 0, 0)
    for path, tally in recorder.tallies.items():
        fvcore_style = tally.macs + tally.fvcore_terms
        add(path, 0, 0, 0, tally.macs, fvcore_style, tally.other_ops, tally.activation_elements)
    whole = ModuleProfile(*totals[""])
    profile = PartProfile(
        **{name: getattr(whole, name) for name in ModuleProfile.__slots__},
        peak_activation_bytes=recorder.peak_bytes,
        uncounted=dict(sorted(recorder.uncounted.items())),
        modules={path: ModuleProfile(*held) for path, held in totals.items()},
    )
    return profile, outputs


def _record(module: nn.Module, inputs: Inputs) -> tuple[_Recorder, Any]:
    """One forward on meta, watched, and what it gave."""
    twin, weights = _meta_twin(module)
    arguments = tree_map_only(Tensor, lambda t: t.detach().to("meta"), as_arguments(inputs))
    recorder = _Recorder(twin, weights, [t for t in tree_iter(arguments) if isinstance(t, Tensor)])
    # Inference mode shows operations as the model calls them, before torch takes them apart.
    with torch.inference_mode(), recorder:
        outputs = twin(*arguments)
    for part in twin.modules():
        del vars(part)["forward"]  # a reference cycle, which would keep the copy in memory until garbage collection
    return recorder, outputs


@dataclass(slots=True)
class _Tally:
    """What the operations that a module calls itself have cost so far."""

    macs: int = 0
    fvcore_terms: int = 0
    other_ops: int = 0
    activation_elements: int = 0


@dataclass(slots=True, eq=False)
class _Frame:
    """A module at a path, and the frames of what was called from it, by the id of the module."""

    module: nn.Module
    path: str
    tally: _Tally
    inner: dict[int, _Frame] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)

    def name_of(self, part: nn.Module) -> str | None:
        """Path from this module to one that it holds; None where it does not."""
        for name, child in self.module.named_children():
            if child is part:
                return name
        if not self._names:
            for name, held in self.module.named_modules(remove_duplicate=False):
                self._names.setdefault(id(held), name)
        return self._names.get(id(part))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches each operation of a forward on meta: who called it, what it costs, what it stores.

    What has a formula, or is known to be one step, is counted as it comes; everything else is first taken apart as far
    as torch does.

    Args:
        module: what will be called; its forwards are wrapped.
        weights, inputs: tensors that exist beforehand.
    """

    def __init__(self, module: nn.Module, weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: Counter[str] = Counter()
        self._root = self._top = _Frame(module, "", _Tally())
        self.tallies = {"": self._root.tally}
        self._within = False  # an operation that is being taken apart
        self._whole: set[Any] = set()  # operations that have no parts
        self._stored: dict[int, object] = {id(storage): storage for storage in (t.untyped_storage() for t in weights)}
        self._bytes = self.peak_bytes = 0
        for tensor in inputs:
            self._store(tensor)
        for part in module.modules():
            vars(part)["forward"] = functools.partial(self._forward, part, part.forward)

    @property
    def macs(self) -> int:
        """Multiply-adds so far."""
        return sum(tally.macs for tally in self.tallies.values())

    def _forward(self, part: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """A module's forward, in its frame."""
        caller = self._top
        self._top = caller.inner.get(id(part)) or self._enter(caller, part)
        try:
            return forward(*args, **kwargs)
        finally:
            self._top = caller

    def _enter(self, caller: _Frame, part: nn.Module) -> _Frame:
        """The frame of `part` when `caller` calls it: below the caller where it is held there, else where it is held.

        A module may be held at several paths; one that is held nowhere counts as its caller.
        """
        if part is caller.module:
            return caller
        for holder in (caller, self._root):
            name = holder.name_of(part)
            if name is not None:
                path = f"{holder.path}.{name}" if holder.path else name
                tally = self.tallies.setdefault(path, _Tally())
                break
        else:
            path, tally = caller.path, caller.tally
        frame = caller.inner[id(part)] = _Frame(part, path, tally)
        return frame

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        term = None if self._within else fvcore_term(func)
        flops, cost = _flops(func), work(func)
        if flops is None and cost is None and func not in self._whole:
            within, self._within = self._within, True
            with self:
                out = func.decompose(*args, **kwargs)
            self._within = within
            if out is not NotImplemented:
                if term is not None:
                    self._top.tally.fvcore_terms += term(args, out)
                return out
            self._whole.add(func)
        # Half of a meta forward would be torch's own check of shapes in BatchNorm.
        known_shape = func is torch.ops.aten.batch_norm.default and not args[5]
        out = torch.empty_like(args[0]) if known_shape else func(*args, **kwargs)
        tally = self._top.tally
        if flops is not None:
            tally.macs += flops(*args, **kwargs, out_val=out) // 2
        elif is_matmul_like(name := str(func.overloadpacket)):
            self.uncounted[name] += 1
        if cost is not None:
            tally.other_ops += cost(args, out)
        if term is not None:
            tally.fvcore_terms += term(args, out)
        for result in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(result, Tensor) and self._store(result):
                tally.activation_elements += result.numel()
        return out

    def _store(self, tensor: Tensor) -> bool:
        """Track a tensor's storage until it is freed; False where it is tracked already, like that of a view."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()  # one object for each storage, as long as that exists
        if key in self._stored:
            return False

        def free(_: object) -> None:
            del self._stored[key]
            self._bytes -= size

        self._stored[key] = ref(storage, free)
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        return True


def _meta_twin(module: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the module's structure whose tensors hold no values and want no gradients, and those tensors.

    Tensors are replaced by way of deepcopy's memo, so that no value is copied. A copy, because a forward on meta may
    store meta tensors in the module (torchvision's anchors do).
    """
    memo: dict[int, Any] = {}
    shells = []
    for part in module.modules():
        for value in (*part.parameters(recurse=False), *part.buffers(recurse=False), *vars(part).values()):
            if isinstance(value, Tensor):
                if id(value) not in memo:
                    memo[id(value)] = shell = _shell(value)
                    shells.append(shell)
            # Most of what deepcopy would walk through: empty tables of hooks, and frozen data such as a graph.
            elif type(value) is OrderedDict and not value:
                memo[id(value)] = OrderedDict()
            elif _is_frozen(value):
                memo[id(value)] = value
    return copy.deepcopy(module, memo), shells


def _is_frozen(value: object) -> bool:
    """Whether it is of a dataclass that does not change, so that two modules may hold the same one."""
    parameters: Any = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _shell(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _deformable_convolution_flops(x: Any, weight: Any, *rest: Any, out_val: Any = None, **other: Any) -> int:
    """FLOPs of torchvision's deformable convolution: every output value costs one kernel, as in a plain one.

    Where the taps lie, and their bilinear interpolation, is no product of a matrix and counts nothing.
    """
    return 2 * int(out_val.numel() * math.prod(weight.shape[1:]))


def _attention_flops(query: Any, key: Any, value: Any, *rest: Any, **other: Any) -> int:
    """FLOPs of softmax(q k^T) v: q [..., Lq, E], k [..., Lk, E], v [..., Lk, Ev]."""
    return 2 * int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


_OWN_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.torchvision.deform_conv2d: _deformable_convolution_flops,
    # As one step, the way fused kernels run it: its matrix is then not among the maps.
    torch.ops.aten.scaled_dot_product_attention: _attention_flops,
}


def _flops(func: Any) -> Callable[..., int] | None:
    """torch's own formula for an operation's FLOPs, two a MAC, or ours; None where there is none."""
    packet = func.overloadpacket
    formula: Callable[..., int] | None = _OWN_FLOPS.get(packet) or flop_registry.get(packet)
    return formula
