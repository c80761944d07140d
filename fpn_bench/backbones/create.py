"""Backbones: any timm model as a frozen source of feature maps, finest first, [N, C, H, W]."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
from torch import Tensor, nn

from fpn_bench.backbones.probe import Probe, architecture, build_model, check_image_size, cut, intermediate_maps, probe
from fpn_bench.backbones.weights import WeightsRecord, build_from_hub, load_weights, read_weights
from fpn_bench.errors import InputError
from fpn_bench.pyramid import FeatureSpec, ImageSize


class Backbone(nn.Module):
    """A frozen timm model cut down to the stages whose maps are wanted.

    It is always in eval mode, holds no gradients and runs without them: BatchNorm statistics never move.

    Attributes:
        name: timm's name.
        features: what `forward` gives, finest first.
        weights: which weights it has.
        mean, std: normalisation of RGB in [0, 1] that the weights were trained with, one value a channel.
        interpolation: how images were resized in that training, e.g. ``"bicubic"``.
        image_size: (height, width) it was created for; None when none was asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        indices: Sequence[int],
        *,
        name: str,
        features: tuple[FeatureSpec, ...],
        weights: WeightsRecord,
        image_size: ImageSize | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.features = features
        self.weights = weights
        self.image_size = image_size
        config = model.pretrained_cfg
        self.mean: tuple[float, float, float] = tuple(config["mean"])  # type: ignore[index]
        self.std: tuple[float, float, float] = tuple(config["std"])  # type: ignore[index]
        self.interpolation: str = config["interpolation"]  # type: ignore[index, assignment]
        self._indices = list(indices)
        self.requires_grad_(False)
        self.eval()

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of `features`."""
        return tuple(spec.level for spec in self.features)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode: a frozen backbone has nothing to train."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of `images`.

        Args:
            images: float [N, 3, H, W], normalised by `mean` and `std`.

        Returns:
            One map [N, channels, ~H / stride, ~W / stride] a feature, finest first.
        """
        with torch.no_grad():
            return tuple(intermediate_maps(self.model, images, self._indices))

    def extra_repr(self) -> str:
        return f"{self.name}, levels={self.levels}, weights={self.weights.id}"


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """One line of `fpn-bench backbones`.

    Attributes:
        name: timm's name.
        family: timm's family (the module that defines it).
        features: every level it has, finest first; empty when it is no pyramid.
        params: parameters up to the coarsest of these levels, classifier left out.
        reason: why it cannot feed the levels P3 to P5; empty when it can.
    """

    name: str
    family: str
    features: tuple[FeatureSpec, ...]
    params: int
    reason: str


def list_backbones(pattern: str = "*") -> list[str]:
    """timm's model names that match the shell pattern, sorted."""
    return sorted(fnmatch.filter(timm.list_models(), pattern))


def create_backbone(
    name: str,
    levels: Sequence[int] = (3, 4, 5),
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    image_size: ImageSize | None = None,
    seed: int = 0,
    device: Literal["cpu", "meta"] = "cpu",
) -> Backbone:
    """A frozen backbone that gives the maps of `levels`.

    Args:
        name: a timm name (`list_backbones`), e.g. ``"resnet50"`` or ``"resnet50.a1_in1k"``.
        levels: k of the maps ``Ck`` wanted, finest first.
        pretrained: take the weights timm publishes for `name` (downloaded on first use).
        weights: path of a state dict (.safetensors, .pth) or ``"pip:PACKAGE"``; None is random, from `seed`.
        image_size: (height, width) in pixels that it must take: tried out here, and built for where the model is
            built for one size.
        seed: of random weights; the global generator is left as it was.
        device: ``"cpu"``, or ``"meta"`` for a backbone of shapes without values (to count parameters and MACs).

    Raises:
        UnknownNameError: timm has no such model.
        InputError: the model lacks a level, is no pyramid, or cannot take `image_size`; or that is no size.
        WeightsError: the weights do not fit or cannot be had.
    """
    if image_size is not None:
        image_size = check_image_size(image_size)
    if pretrained and weights is not None:
        raise InputError(f"pretrained=True and weights={str(weights)!r} came: give one of them")
    if device == "meta" and (pretrained or weights is not None):
        raise InputError("device='meta' holds no values: leave out pretrained and weights")
    found = probe(name, image_size)
    features = _select(found, levels)
    read = None if weights is None else read_weights(weights, found)

    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would move the devices' too.
        torch.default_generator.manual_seed(seed)
        if pretrained:
            record, model = build_from_hub(name, found)
        else:
            record, model = WeightsRecord("random", f"seed{seed}"), build_model(name, device=device, **found.options)
    indices = cut(model, [found.indices[spec.level] for spec in features])
    if read is not None:
        record, tensors = read
        load_weights(model, tensors, record, found)

    backbone = Backbone(model, indices, name=name, features=features, weights=record, image_size=image_size)
    if image_size is not None and device != "meta":
        # Meta cannot see an index out of range (mvitv2's position tables): one real forward can.
        try:
            backbone(torch.zeros(1, 3, *image_size))
        except Exception as error:
            raise InputError(
                f"backbone {name!r} cannot take image_size={image_size} ({' '.join(str(error).split())[:160]}): "
                f"its own size is {found.default_size}"
            ) from error
    return backbone


def describe_backbone(name: str, image_size: ImageSize | None = (256, 256)) -> BackboneInfo:
    """What a backbone gives, found without holding its weights in memory.

    Args:
        name: a timm name.
        image_size: (height, width) it should take; None asks nothing.

    Raises:
        UnknownNameError: timm has no such model.
        InputError: `image_size` is not two whole numbers above 0.
    """
    if image_size is not None:
        image_size = check_image_size(image_size)
    base = architecture(name)
    family = timm.model_entrypoint(base).__module__.rpartition(".")[2]
    try:
        found = probe(name, image_size)
    except InputError as error:
        return BackboneInfo(name, family, (), 0, str(error))
    try:
        _select(found, (3, 4, 5))
        reason = ""
    except InputError as error:
        reason = str(error)
    return BackboneInfo(name, family, found.features, found.params, reason)


def _select(found: Probe, levels: Sequence[int]) -> tuple[FeatureSpec, ...]:
    wanted = tuple(levels)
    if not wanted or list(wanted) != sorted(set(wanted)):
        raise InputError(f"levels={wanted} came: each level once, finest first, is wanted, e.g. levels=(3, 4, 5)")
    specs = {spec.level: spec for spec in found.features}
    missing = [level for level in wanted if level not in specs]
    if missing:
        raise InputError(
            f"backbone {found.name!r} has levels {', '.join(map(str, specs))} "
            f"(strides {', '.join(str(s.stride) for s in specs.values())}), not {', '.join(map(str, missing))}: "
            f"ask for levels={tuple(specs)} or choose another (`fpn-bench backbones` lists them)"
        )
    return tuple(specs[level] for level in wanted)
