"""What a timm name gives: its maps, their strides and its tensors, found by one forward on the meta device.

Nothing is decided by the name. A stride is the quotient of the input size and the map size at 1024x1024, where
padding hardly shows; a model that takes only its own size is asked at that size.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import timm
import torch
from torch import Tensor, nn

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.pyramid import FeatureSpec, ImageSize

PROBE_SIZE: ImageSize = (1024, 1024)
"""A multiple of every window and stride known; free on the meta device."""

STRIDE_TOLERANCE = 0.1
"""How far log2(input size / map size) may lie from a whole number. Stride 14 is off by 0.19, valid padding by 0.09."""

# Keyword arguments that make a model take sizes other than its own, mildest first.
_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True})
# Windows and strides of timm's models divide one of these; used to name a size that works.
_MULTIPLES = (32, 64, 128, 224, 256)


@dataclass(frozen=True)
class Probe:
    """A timm model seen from outside.

    Attributes:
        name: timm's name, without a weights tag.
        options: keyword arguments for `timm.create_model` that the maps below need.
        features: every level the model has, finest first; the last map of each stride.
        indices: level -> index of its map for timm's `forward_intermediates`.
        shapes: name -> shape of every tensor of the state dict of the whole classifier with `options`, in order.
        params: parameters up to the last of `features`, classifier left out.
        default_size: (height, width) the model was published at.
    """

    name: str
    options: Mapping[str, Any]
    features: tuple[FeatureSpec, ...]
    indices: Mapping[int, int]
    shapes: Mapping[str, tuple[int, ...]]
    params: int
    default_size: ImageSize


def check_image_size(image_size: Sequence[int]) -> ImageSize:
    """The size as a tuple of ints.

    Raises:
        InputError: it is not two whole numbers above 0.
    """
    try:
        height, width = (operator.index(side) for side in image_size)
        if min(height, width) > 0:
            return height, width
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"image_size={image_size!r} came: (height, width) in whole pixels above 0 is wanted, e.g. image_size=(256, 256)"
    )


def build_model(name: str, *, device: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """The whole timm classifier, in eval mode and without gradients, on `device`."""
    with torch.device(device):
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    # Gradients off before any FLOP counter sees the model: FlopCounterMode raises on 45 names otherwise.
    return model.eval().requires_grad_(False)


def intermediate_maps(model: nn.Module, images: Tensor, indices: list[int] | None = None) -> list[Tensor]:
    """The model's maps [N, C, H, W] at `indices` (all when None), finest first, of images [N, 3, H, W]."""
    maps: list[Tensor] = model.forward_intermediates(  # type: ignore[operator]
        images, indices=indices, norm=False, output_fmt="NCHW", intermediates_only=True
    )
    return maps


def cut(model: nn.Module, indices: list[int]) -> list[int]:
    """Drop the parts behind the last map wanted, in place; the maps' indices afterwards."""
    kept: list[int] = model.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)  # type: ignore[operator]
    return kept


def tensors_up_to(found: Probe, level: int) -> frozenset[str]:
    """Names of the tensors that the map of `level` needs."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(found.name, device="meta", **found.options)
    cut(model, [found.indices[level]])
    return frozenset(model.state_dict())


def map_shapes(model: nn.Module, image_size: ImageSize) -> list[torch.Size]:
    """Shape of every map of one image of `image_size`, on the model's own device."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return [m.shape for m in intermediate_maps(model, torch.zeros(1, 3, *image_size, device=device))]


def architecture(name: str) -> str:
    """timm's name without the weights tag (``resnet50.a1_in1k`` -> ``resnet50``).

    Raises:
        UnknownNameError: timm has no such model or no such tag.
    """
    base, _, tag = name.partition(".")
    hint = "fpn-bench backbones"
    if not timm.is_model(base):
        raise UnknownNameError("backbone", name, timm.list_models(), hint)
    if tag:
        tagged = timm.list_models(f"{base}.*", pretrained=True, include_tags=True)
        if name not in tagged:
            raise UnknownNameError("backbone", name, [base, *tagged], hint)
    return base


@lru_cache(maxsize=128)
def probe(name: str, image_size: ImageSize | None = None) -> Probe:
    """Find out what a backbone gives, without holding its weights in memory.

    Args:
        name: a timm name, with or without a weights tag.
        image_size: (height, width) the backbone must take; None asks nothing.

    Raises:
        UnknownNameError: timm has no such model.
        InputError: the maps are no pyramid of strides 2^k, or the model cannot take `image_size`.
    """
    base = architecture(name)
    # Some constructors draw numbers even on meta; the caller's generator is not ours to move.
    with torch.random.fork_rng(devices=[]):
        return _probe(base, image_size)


def _probe(name: str, image_size: ImageSize | None) -> Probe:
    plain = build_model(name, device="meta")
    default_size: ImageSize = plain.pretrained_cfg["input_size"][-2:]  # type: ignore[index, assignment]

    # timm's models refuse a size by any exception there is (AssertionError, RuntimeError, TypeError, IndexError ...).
    model, options, size, maps = plain, {}, default_size, None
    for options in _OPTIONS:
        with suppress(Exception):
            model = build_model(name, device="meta", **options) if options else plain
            size, maps = PROBE_SIZE, map_shapes(model, PROBE_SIZE)
            break
    if maps is None:
        model, options, size = plain, {}, default_size
        try:
            maps = map_shapes(model, size)
        except Exception as error:
            raise InputError(f"backbone {name!r} fails at its own size {size}: {_one_line(error)}") from error

    if image_size is not None and image_size != size:
        try:
            map_shapes(model, image_size)
        except Exception as error:
            try:
                options, size = {"img_size": image_size}, image_size
                model = build_model(name, device="meta", **options)
                maps = map_shapes(model, size)
            except Exception:
                raise InputError(_refused_size(name, image_size, default_size, error)) from error

    features, indices = _levels(name, size, maps)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    cut(model, list(indices.values()))
    return Probe(
        name=name,
        options=MappingProxyType(options),
        features=features,
        indices=MappingProxyType(indices),
        shapes=MappingProxyType(shapes),
        params=sum(p.numel() for p in model.parameters()),
        default_size=default_size,
    )


def _levels(name: str, image_size: ImageSize, maps: list[torch.Size]) -> tuple[tuple[FeatureSpec, ...], dict[int, int]]:
    """The last map of each power-of-two stride."""
    specs: dict[int, FeatureSpec] = {}
    indices: dict[int, int] = {}
    strides: list[float] = []
    for index, shape in enumerate(maps):
        _, channels, height, width = shape
        stride = math.sqrt(image_size[0] * image_size[1] / (height * width))
        strides.append(stride)
        level = round(math.log2(stride))
        if level >= 0 and abs(math.log2(stride) - level) < STRIDE_TOLERANCE:
            specs[level] = FeatureSpec(level=level, channels=channels, stride=2**level)
            indices[level] = index
    if not specs:
        seen = ", ".join(f"{s:.3g}" for s in dict.fromkeys(strides))
        raise InputError(
            f"backbone {name!r} gives maps of stride {seen}; strides 2, 4, 8, 16, 32 ... are wanted: "
            "choose another (`fpn-bench backbones` lists them)"
        )
    return tuple(specs[level] for level in sorted(specs)), indices


def _refused_size(name: str, image_size: ImageSize, default_size: ImageSize, error: Exception) -> str:
    """What to type instead: the next size up that the model takes."""
    message = f"backbone {name!r} cannot take image_size={image_size} ({_one_line(error)})"
    sizes = [(-(-image_size[0] // m) * m, -(-image_size[1] // m) * m) for m in _MULTIPLES]
    for size in sizes:
        for options in (*_OPTIONS, {"img_size": size}):
            with suppress(Exception):
                map_shapes(build_model(name, device="meta", **options), size)
                return f"{message}: image_size={size} works"
    return f"{message}: its own size is image_size={default_size}"


def _one_line(error: Exception, width: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else text[: width - 3] + "..."
