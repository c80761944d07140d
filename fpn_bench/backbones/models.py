"""Access to timm: names, whole classifiers, their intermediate maps, and removing the parts that are not used."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import get_deprecated_models
from torch import Tensor, nn

from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.pyramid import ImageSize

_HINT = "fpn-bench backbones"
_log = logging.getLogger(__name__)


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
        f"expected image_size as (height, width) in whole pixels above 0, e.g. (256, 256), got {image_size!r}"
    )


def is_renamed(name: str) -> bool:
    """Whether timm has replaced this model name, given without a tag, by another."""
    return bool(get_deprecated_models().get(name))


def current_name(name: str) -> str:
    """The name, or timm's present name if timm has renamed the model, which is logged once a process.

    Raises:
        UnknownNameError: a model that timm has removed without a replacement.
    """
    renamed = get_deprecated_models()
    base, _, tag = name.partition(".")
    if base not in renamed:
        return name
    successor = renamed[base]
    if not successor or tag:
        raise UnknownNameError("backbone", name, [successor] if successor else timm.list_models(), _HINT)
    base, _, tag = successor.partition(".")
    if tag and successor not in (tagged := _tagged(base)):
        # timm's own table names tags in short: `vit_base_patch16_224.sam` is `vit_base_patch16_224.sam_in1k`.
        whole = [other for other in tagged if other.startswith(f"{successor}_")]
        successor = whole[0] if len(whole) == 1 else base
    _log_renamed(name, successor)
    return successor


@functools.cache
def _log_renamed(name: str, successor: str) -> None:
    _log.warning("timm calls backbone %r %r now: that one is used", name, successor)


def architecture(name: str) -> str:
    """timm's name without the weights tag (``resnet50.a1_in1k`` -> ``resnet50``), the present one of a renamed model.

    Raises:
        UnknownNameError: timm has no such model or no such tag.
    """
    name = current_name(name)
    base, _, tag = name.partition(".")
    hint = _HINT
    if not timm.is_model(base):
        raise UnknownNameError("backbone", name, timm.list_models(), hint)
    if tag:
        tagged = _tagged(base)
        if name not in tagged:
            raise UnknownNameError("backbone", name, [base, *tagged], hint)
    return base


def _tagged(base: str) -> list[str]:
    return timm.list_models(f"{base}.*", pretrained=True, include_tags=True)


def build_model(name: str, *, device: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """The whole timm classifier, in eval mode and without gradients, on `device`."""
    with torch.device(device):
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    # Gradients off before any FLOP counter sees the model: FlopCounterMode raises on 45 names otherwise.
    return model.eval().requires_grad_(False)


def intermediate_maps(
    model: nn.Module, images: Tensor, indices: list[int] | None = None, *, stop_early: bool = False
) -> list[Tensor]:
    """The model's maps [N, C, H, W] at `indices` (all when None), finest first, of images [N, 3, H, W].

    With `stop_early`, nothing behind the last of them is computed; `cut` saves the parameters as well.
    """
    maps: list[Tensor] = model.forward_intermediates(  # type: ignore[operator]
        images, indices=indices, norm=False, stop_early=stop_early, output_fmt="NCHW", intermediates_only=True
    )
    return maps


def map_shapes(model: nn.Module, image_size: ImageSize) -> list[torch.Size]:
    """Shape of every map of one image of `image_size`, on the model's own device."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return [m.shape for m in intermediate_maps(model, torch.zeros(1, 3, *image_size, device=device))]


def cut(model: nn.Module, indices: list[int]) -> list[int]:
    """Drop the parts behind the last map wanted, in place; the maps' indices afterwards."""
    kept: list[int] = model.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)  # type: ignore[operator]
    return kept


def one_line(error: Exception | str, width: int = 160) -> str:
    """The error's message without line breaks, at most `width` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else text[: width - 3] + "..."
