"""Splitting a backbone: a frozen prefix, whose outputs can be kept, and a suffix that is trained on them.

This works without knowledge of any model. A run that stops at the map of a level shows which modules it calls; the last
of them is the level's tap. The suffix is a copy of the backbone in which the modules up to the coarsest frozen tap are
stand-ins: a tap returns the prefix's output, the others return zeros of the recorded shape. So the model's own code
runs, with all that it does between its modules. The split is verified against the whole model: a model whose later
stages need more than the tap, or whose tap is several tensors, is not split.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from fpn_bench.backbones.create import Backbone
from fpn_bench.backbones.models import intermediate_maps, one_line
from fpn_bench.backbones.probe import probe
from fpn_bench.errors import InputError, MeasurementError
from fpn_bench.profiling import ANY_ERROR, shallow_copy, translate_torch_errors
from fpn_bench.pyramid import FeatureSpec, ImageSize

TOLERANCE: Final = 1e-5
"""Tolerance between the two parts and the whole, as a share of the largest value of a map (at least 1)."""
_BATCH: Final = 2
"""Images of the recorded runs: not 1, so that a dimension that depends on the batch is seen."""


@dataclass(frozen=True)
class Split:
    """A backbone in two parts: ``suffix(prefix.trunk(images))`` are the maps of ``backbone.trunk(images)``.

    Attributes:
        prefix: the frozen part, which sees an image once.
        suffix: the trained part, with its initial weights: train a copy. The identity where everything is frozen.
        variant: identifies how the prefix's outputs differ from the maps of the whole trunk, as plain JSON values.
        reason: why the prefix only passes the images on, so that caching its outputs is useless; empty otherwise.
    """

    prefix: Backbone | Prefix
    suffix: nn.Module
    variant: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


class Prefix:
    """The frozen part of a backbone; the backbone is read and never changed.

    Attributes:
        trunk_features: the levels whose taps `trunk` gives, finest first; none where it gives the images.
    """

    def __init__(self, backbone: Backbone, taps: Sequence[_Tap] = ()) -> None:
        self.name, self.weights = backbone.name, backbone.weights
        self.mean, self.std, self.interpolation = backbone.mean, backbone.std, backbone.interpolation
        self.trunk_features = tuple(tap.spec for tap in taps)
        self._backbone = backbone
        self._taps = tuple(taps)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the whole backbone, which identify its device."""
        return self._backbone.parameters()

    @torch.no_grad()
    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """From images [N, 3, H, W] to a tensor [N, ...] a tap, in the model's own layout; or to ``(images,)``."""
        if not self._taps:
            return (images,)
        run = _record_run(self._backbone, images, [self._taps[-1].index], keep=[tap.call for tap in self._taps])
        return tuple(_tensors(run.kept[tap.call])[0] for tap in self._taps)


class Suffix(nn.Module):
    """The trained part of a backbone; its frozen modules get no gradient and stay in eval mode.

    Args:
        backbone: its own copy; what is trained requires gradients.
        still: names of the model's modules that are frozen.
        replay: replaces the prefix; None where the inputs are images.
    """

    def __init__(self, backbone: Backbone, still: Collection[str] = (), replay: _Replay | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self._still = tuple(still)
        self._replay = replay

    def train(self, mode: bool = True) -> Suffix:
        """Train mode for all but what is frozen: batch-norm statistics there do not move."""
        super().train(mode)
        self.backbone.model.train(mode)  # a backbone itself refuses train mode
        for name in self._still:
            self.backbone.model.get_submodule(name).training = False
        return self

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the backbone's trunk features, with gradients.

        Args:
            inputs: what `Prefix.trunk` gave.
        """
        images = inputs[0] if self._replay is None else self._replay.start(inputs)
        return self.backbone.maps(images)


def joined(backbone: Backbone, suffix: nn.Module) -> Backbone:
    """A copy of a split backbone with the present weights of its suffix."""
    whole = copy.deepcopy(backbone)
    if isinstance(suffix, Suffix):
        whole.model.load_state_dict(suffix.backbone.model.state_dict(), strict=False)  # less what is frozen
    return whole


def split_backbone(backbone: Backbone, freeze: Literal["all", "none"] | int, image_size: ImageSize) -> Split:
    """Split a backbone into a frozen and a trained part.

    Args:
        backbone: frozen; it does not change, and the prefix uses it.
        freeze: ``"all"``, ``"none"``, or k: all that its map Ck needs.
        image_size: (height, width) in pixels of the images to come.

    Raises:
        InputError: the backbone has no level k, or none of its maps is coarser.
    """
    if freeze == "all":
        return Split(backbone, nn.Identity())
    whole = copy.deepcopy(backbone)
    whole.adapter = None  # it is trained with the neck
    whole.requires_grad_(True)
    if freeze == "none":
        return Split(Prefix(backbone), Suffix(whole).eval(), reason=f"nothing of {backbone.name} is frozen")

    indices = _frozen_indices(backbone, freeze)
    device = next(backbone.parameters()).device
    images = torch.randn(_BATCH, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)
    full = _record_run(whole, images, _indices(whole))
    frozen = _record_run(whole, images, list(indices.values()))
    trained = _leaves(full.maps) - _leaves(frozen.maps)
    for parameter in whole.parameters():
        parameter.requires_grad_(parameter in trained)
    # A module that is called again later (an activation that stages share) belongs to both parts.
    later = Counter(full.modules) - Counter(frozen.modules)
    still = [
        name
        for name, module in whole.model.named_modules()
        if module in frozen.modules and module not in later and not any(p.requires_grad for p in module.parameters())
    ]
    try:
        with translate_torch_errors(ANY_ERROR):  # a model's code may raise anything on stand-ins
            taps = [_tap(whole, images, level, index, later) for level, index in indices.items()]
            suffix = _suffix(whole, frozen, taps, later, image_size)
            variant = {"stages": {str(tap.spec.level): [tap.index, tap.call] for tap in taps}}
            split = Split(Prefix(backbone, taps), suffix, variant)
            if _equal(split, backbone, images):
                return split
            why = "its later stages need more than that map"
    except MeasurementError as error:
        why = one_line(error.reason)
    reason = f"the part of {backbone.name} behind C{freeze} does not run on its own ({why})"
    return Split(Prefix(backbone), Suffix(whole, still).eval(), reason=reason)


@dataclass(frozen=True)
class _Tap:
    """Where the values of a level leave the prefix: `call` numbers the model's outermost calls up to map `index`."""

    spec: FeatureSpec
    index: int
    call: int


@dataclass(frozen=True)
class _Run:
    """A recorded run of the model.

    Attributes:
        maps: what it gave.
        modules: every module called, in the order in which they returned; again where called again.
        calls: the outermost of them, with their outputs' shapes as tensors on meta.
        kept: the outputs asked for, by their place in `calls`.
    """

    maps: tuple[Tensor, ...]
    modules: list[nn.Module]
    calls: list[tuple[nn.Module, Any]]
    kept: dict[int, Any]


class _Replay:
    """Outputs of the prefix's modules inside the suffix, call by call.

    Args:
        outputs: of the calls, on meta, for a batch of `_BATCH`.
        taps: place in `outputs` -> place in the suffix's inputs.
        image_size: (height, width) of the images.
    """

    def __init__(self, outputs: Sequence[Any], taps: Mapping[int, int], image_size: ImageSize) -> None:
        self.outputs = list(outputs)
        self.taps = dict(taps)
        self.image_size = image_size
        self.inputs: Sequence[Tensor] = ()
        self.done = 0

    def start(self, inputs: Sequence[Tensor]) -> Tensor:
        """Images without content [N, 3, H, W] for `inputs`."""
        self.inputs, self.done = inputs, 0
        return inputs[0].new_zeros(1).expand(len(inputs[0]), 3, *self.image_size)

    def next(self, *_: Any, **__: Any) -> Any:
        """The output of the next call; its arguments do not matter."""
        call, self.done = self.done, self.done + 1
        if call in self.taps:
            return _replaced(self.outputs[call], lambda _: self.inputs[self.taps[call]])
        return _replaced(self.outputs[call], self._zeros)

    def _zeros(self, like: Tensor) -> Tensor:
        zero = torch.zeros(1, dtype=like.dtype, device=self.inputs[0].device)
        return zero.expand(like.shape[0] // _BATCH * len(self.inputs[0]), *like.shape[1:])


def _indices(backbone: Backbone) -> list[int]:
    return sorted({source.index for source in backbone.sources})


def _frozen_indices(backbone: Backbone, level: int) -> dict[int, int]:
    """The maps that the prefix hands over, level -> index, finest first: those of the trunk, and that of `level`."""
    own = {source.level: source.index for source in backbone.sources}
    indices = {**probe(backbone.name, backbone.image_size).indices, **own}
    allowed = sorted(k for k, index in indices.items() if index < max(own.values()))
    if level not in allowed:
        maps = ", ".join(f"C{k}" for k in own)
        expected = f"{', '.join(map(str, allowed))}, all or none" if allowed else "all or none"
        raise InputError(
            f"training.freeze: expected {expected} for backbone {backbone.name!r} with the maps {maps}, got {level}"
        )
    return {k: indices[k] for k in sorted({level, *(k for k in own if k < level)})}


def _tap(whole: Backbone, images: Tensor, level: int, index: int, later: Collection[nn.Module]) -> _Tap:
    run = _record_run(whole, images, [index])
    # A module that is called again later is no stage but a helper, such as one that puts tokens back in order.
    call = max(k for k, (module, _) in enumerate(run.calls) if module not in later)
    tensors = _tensors(run.calls[call][1])
    if len(tensors) != 1:
        raise ValueError(f"its map C{level} comes out of {len(tensors)} tensors")
    channels = run.maps[0].shape[1]
    return _Tap(FeatureSpec(level, channels, stride=2**level), index, call)


def _suffix(
    whole: Backbone, frozen: _Run, taps: Sequence[_Tap], later: Collection[nn.Module], image_size: ImageSize
) -> Suffix:
    """A copy of `whole` with stand-ins for all that is called up to the last tap and never again."""
    replayed = [k for k in range(taps[-1].call + 1) if frozen.calls[k][0] not in later]
    replay = _Replay(
        [frozen.calls[k][1] for k in replayed],
        {replayed.index(tap.call): place for place, tap in enumerate(taps)},
        image_size,
    )
    # With these in its memo, deepcopy does not copy their weights and replaces every reference to them.
    memo = {id(module): _stand_in(module, replay) for module in (frozen.calls[k][0] for k in replayed)}
    return Suffix(copy.deepcopy(whole, memo), replay=replay).eval()


def _stand_in(module: nn.Module, replay: _Replay) -> nn.Module:
    """The module without tensors and submodules, whose calls `replay` answers; its other attributes do not change."""
    bare = shallow_copy(module)
    parts = [name for name, _ in bare.named_modules(remove_duplicate=False) if name and "." not in name]
    tensors = [*bare.named_parameters(recurse=False), *bare.named_buffers(recurse=False)]
    for name in (*parts, *(name for name, _ in tensors)):
        delattr(bare, name)
    bare.forward = replay.next
    return bare


@torch.no_grad()
def _equal(split: Split, backbone: Backbone, images: Tensor) -> bool:
    """Whether the two parts give what the whole gives, for a batch of another size than the one watched."""
    images = torch.cat([images, images.flip(0, 3)[:1]])
    pairs = zip(split.suffix(split.prefix.trunk(images)), backbone.trunk(images), strict=True)
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(b.abs().max()))
        for a, b in pairs
    )


def _record_run(backbone: Backbone, images: Tensor, indices: Sequence[int], keep: Collection[int] = ()) -> _Run:
    """Run the model up to the last of the maps `indices`, and record what it calls."""
    modules: list[nn.Module] = []
    calls: list[tuple[nn.Module, Any]] = []
    kept: dict[int, Any] = {}
    depth = 0

    def enter(module: nn.Module, _: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        modules.append(module)
        if depth == 0:
            if len(calls) in keep:
                kept[len(calls)] = output
            calls.append((module, _replaced(output, lambda t: t.detach().to("meta"))))

    handles = []
    try:
        for module in backbone.model.modules():
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        maps = tuple(intermediate_maps(backbone.model, backbone.pad(images), list(indices), stop_early=True))
    finally:
        for handle in handles:
            handle.remove()
    return _Run(maps, modules, calls, kept)


def _leaves(tensors: Sequence[Tensor]) -> set[Tensor]:
    """The leaves of the autograd graph that `tensors` were computed from."""
    leaves, seen = set(), set()
    left = [t.grad_fn for t in tensors]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        left += [parent for parent, _ in node.next_functions]
    return leaves


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in a module's output, which may be tuples and lists of others."""
    if isinstance(output, Tensor):
        return [output]
    return [t for part in output for t in _tensors(part)] if isinstance(output, (tuple, list)) else []


def _replaced(output: Any, change: Callable[[Tensor], Any]) -> Any:
    """A module's output with every tensor changed."""
    if isinstance(output, Tensor):
        return change(output)
    return type(output)(_replaced(part, change) for part in output) if isinstance(output, (tuple, list)) else output
