"""Backbones: any timm model as a frozen source of the requested feature maps, finest first, [N, C, H, W]."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpn_bench.backbones.adapters import Plan, Source, plan
from fpn_bench.backbones.grid import to_grid
from fpn_bench.backbones.models import (
    architecture,
    build_model,
    check_image_size,
    current_name,
    cut,
    intermediate_maps,
    is_renamed,
    one_line,
)
from fpn_bench.backbones.probe import Probe, Recipe, probe, state_shapes
from fpn_bench.backbones.weights import WeightsRecord, build_from_hub, load_weights, read_weights
from fpn_bench.errors import InputError, MeasurementError, WeightsError
from fpn_bench.nn.neck import Neck, build_neck
from fpn_bench.profiling import ANY_ERROR, translate_torch_errors
from fpn_bench.pyramid import FeatureSpec, ImageSize
from fpn_bench.vocabulary import AdapterName


class Backbone(nn.Module):
    """A timm model cut down to the stages whose maps are used, and what makes the levels that it lacks.

    The trunk, which is timm's model, is frozen: always in eval mode, without gradients, its BatchNorm statistics never
    move. The adapter, where there is one, is trained with the neck.

    Attributes:
        name: timm's name, the present one of a renamed model.
        features: of `forward`, finest first: exactly the requested levels.
        trunk_features: of `trunk`, finest first.
        adapter: makes `features` of `trunk_features` by its ``graph``; None where they are the same.
        weights: which weights the trunk has.
        mean, std: normalisation of RGB in [0, 1] that the weights were trained with, one value a channel.
        interpolation: how images were resized in that training, e.g. ``"bicubic"``.
        image_size: (height, width) it was created for; None if none was given.
        recipe: how the trunk is made to run.
        sources: where each of `trunk_features` comes from.
    """

    def __init__(
        self,
        model: nn.Module,
        sources: Sequence[Source],
        *,
        name: str,
        trunk_features: tuple[FeatureSpec, ...],
        weights: WeightsRecord,
        recipe: Recipe,
        adapter: Neck | None = None,
        image_size: ImageSize | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.name = name
        self.trunk_features = trunk_features
        self.features = trunk_features if adapter is None else adapter.out_features
        self.weights = weights
        self.recipe = recipe
        self.image_size = image_size
        config = model.pretrained_cfg
        self.mean: tuple[float, float, float] = tuple(config["mean"])  # type: ignore[index]
        self.std: tuple[float, float, float] = tuple(config["std"])  # type: ignore[index]
        self.interpolation: str = config["interpolation"]  # type: ignore[index, assignment]
        self.sources = tuple(sources)
        self._indices = sorted({source.index for source in sources})
        self.model.requires_grad_(False)
        self.eval()

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of `features`."""
        return tuple(spec.level for spec in self.features)

    def train(self, mode: bool = True) -> Backbone:
        """Sets the adapter's mode; the trunk stays in eval mode: frozen, it has nothing to train."""
        super().train(False)
        if self.adapter is not None:
            self.adapter.train(mode)
        return self

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of the frozen model, each on the grid of its level.

        Args:
            images: float [N, 3, H, W], normalised by `mean` and `std`.

        Returns:
            One contiguous map [N, channels, ~H / 2^k, ~W / 2^k] a level k of `trunk_features`, finest first.

        Raises:
            InputError: the model was built for another image size.
        """
        with torch.no_grad():
            return self.maps(images)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps of `trunk`, with gradients for the parameters that require them: for a copy that is trained."""
        size = (images.shape[-2], images.shape[-1])
        images = self.pad(images)
        padded = (images.shape[-2], images.shape[-1])
        maps = dict(zip(self._indices, intermediate_maps(self.model, images, self._indices), strict=True))
        return tuple(
            to_grid(maps[source.index], size, padded, source.level, source.stride).contiguous()
            for source in self.sources
        )

    def pad(self, images: Tensor) -> Tensor:
        """The images with zeros (mean grey) at the bottom and the right, up to a size that the model takes.

        Args:
            images: float [N, 3, H, W], normalised by `mean` and `std`.

        Raises:
            InputError: the model was built for another image size.
        """
        height, width = images.shape[-2], images.shape[-1]
        padded = self.recipe.padded((height, width))
        if self.recipe.built_for not in (None, padded):
            raise InputError(
                f"expected images of {self.recipe.built_for}, for which backbone {self.name!r} was built, got "
                f"{height}x{width}: create it with image_size=({height}, {width})"
            )
        return images if padded == (height, width) else F.pad(images, (0, padded[1] - width, 0, padded[0] - height))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of `images`: of the trunk, or what the adapter makes of them.

        Args:
            images: float [N, 3, H, W], normalised by `mean` and `std`.

        Returns:
            One map [N, channels, ~H / stride, ~W / stride] a feature, finest first.

        Raises:
            InputError: the model was built for another image size.
        """
        maps = self.trunk(images)
        return maps if self.adapter is None else self.adapter(maps)

    def extra_repr(self) -> str:
        return f"{self.name}, levels={self.levels}, weights={self.weights.id}, recipe: {self.recipe}"


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """One line of `fpn-bench backbones`.

    Attributes:
        name: timm's name.
        family: timm's family (the module that defines it).
        features: every level that the model itself has, finest first; an adapter makes others. Empty when it has none.
        params: parameters up to the coarsest of these levels, classifier left out.
        reason: why it cannot feed a pyramid; empty when it can.
        probe: how it is made to run, and the strides of its maps; None when it cannot.
    """

    name: str
    family: str
    features: tuple[FeatureSpec, ...]
    params: int
    reason: str
    probe: Probe | None = None


def list_backbones(pattern: str = "*") -> list[str]:
    """timm's model names that match the shell pattern, sorted; a name that timm has replaced gives its present one."""
    if is_renamed(pattern):
        return [architecture(pattern)]
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
    adapter: AdapterName = "simple",
) -> Backbone:
    """A backbone with a frozen trunk that gives the maps of `levels`.

    Args:
        name: a timm name (`list_backbones`), e.g. ``"resnet50"`` or ``"resnet50.a1_in1k"``.
        levels: k of the maps ``Pk`` wanted, finest first.
        pretrained: take the weights timm publishes for `name` (downloaded on first use).
        weights: path of a state dict (.safetensors, .pth) or ``"pip:PACKAGE"``; None is random, from `seed`.
        image_size: (height, width) in pixels that it must take. It is tried out here, and a model of one fixed
            size is built for it. None: any size, or the model's own size where it cannot take any.
        seed: of random weights, the adapter's included; the global generator is left as it was.
        device: ``"cpu"``, or ``"meta"`` for a backbone of shapes without values (to count parameters and MACs).
        adapter: what makes the levels that the model lacks. ``"simple"``: finer ones by transposed convolutions,
            coarser ones by max-pooling (the simple pyramid of Li et al. 2022); ``"taps"``: each level is another depth
            of a model whose maps all have one stride; ``"none"``: nothing, a missing level is an error.

    Raises:
        UnknownNameError: timm has no such model.
        InputError: the model cannot take `image_size`, or lacks a level and `adapter` does not make it; or the size,
            levels or adapter are not valid.
        WeightsError: the weights do not fit or cannot be had.
    """
    name = current_name(name)
    if image_size is not None:
        image_size = check_image_size(image_size)
    if pretrained and weights is not None:
        raise InputError(
            f"expected either pretrained=True or weights, got both; leave out pretrained or weights={str(weights)!r}"
        )
    if device == "meta" and (pretrained or weights is not None):
        raise InputError("device='meta' holds no values: leave out pretrained and weights")
    refuted, failure = 0, None
    while True:
        try:
            found = probe(name, image_size, refuted)
        except InputError as error:
            if failure is None:
                raise
            raise InputError(
                f"backbone {name!r} cannot take image_size={image_size} ({one_line(failure)}): choose another size or "
                "another backbone (`fpn-bench backbones` lists them)"
            ) from error
        planned = plan(found, levels, adapter)
        try:
            backbone = _build(name, found, planned, pretrained, weights, image_size, seed, device)
        except WeightsError:
            # The model was built for the size, and timm cannot resample its tensors: another recipe may not need it.
            other = _unresized(found, image_size, refuted)
            if other is None:
                raise
            refuted = other
            continue
        if image_size is None or device == "meta":
            return backbone
        # Meta cannot see an index out of range (mvitv2's position tables): one real forward can.
        try:
            with translate_torch_errors(ANY_ERROR):
                backbone.trunk(torch.zeros(1, 3, *image_size))
            return backbone
        except MeasurementError as error:
            refuted, failure = refuted + 1, error.reason


def _unresized(found: Probe, image_size: ImageSize | None, refuted: int) -> int | None:
    """The number of the next recipe that leaves the model's tensors as they are at its own size.

    None when there is none, or `found`, which stands at number `refuted`, does so already.
    """
    own = state_shapes(found.name, {})
    while found.shapes != own:
        refuted += 1
        try:
            found = probe(found.name, image_size, refuted)
        except InputError:
            return None
        if found.shapes == own:
            return refuted
    return None


def _build(
    name: str,
    found: Probe,
    planned: Plan,
    pretrained: bool,
    weights: str | Path | None,
    image_size: ImageSize | None,
    seed: int,
    device: str,
) -> Backbone:
    """The backbone by its plan; the global random generator does not change."""
    read = None if weights is None else read_weights(weights, found)
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would move the devices' too.
        torch.default_generator.manual_seed(seed)
        if pretrained:
            record, model = build_from_hub(name, found)
        else:
            record, model = (
                WeightsRecord("random", f"seed{seed}"),
                build_model(name, device=device, **found.recipe.options),
            )
        indices = sorted({source.index for source in planned.sources})
        kept = dict(zip(indices, cut(model, indices), strict=True))
        if read is not None:
            record, tensors = read
            load_weights(model, tensors, record, found)
        adapter = None
        if planned.graph is not None:
            # The adapter's initial weights do not depend on how many numbers the model's constructor drew.
            torch.default_generator.manual_seed(seed)
            with torch.device(device):
                adapter = build_neck(planned.graph, planned.features)
    return Backbone(
        model,
        [replace(source, index=kept[source.index]) for source in planned.sources],
        name=name,
        trunk_features=planned.features,
        weights=record,
        recipe=found.recipe,
        adapter=adapter,
        image_size=image_size,
    )


def describe_backbone(name: str, image_size: ImageSize | None = (256, 256)) -> BackboneInfo:
    """What a backbone gives, found without holding its weights in memory.

    Args:
        name: a timm name.
        image_size: (height, width) it should take; None asks nothing.

    Raises:
        UnknownNameError: timm has no such model.
        InputError: `image_size` is not two whole numbers above 0.
    """
    name = current_name(name)
    if image_size is not None:
        image_size = check_image_size(image_size)
    base = architecture(name)
    family = timm.model_entrypoint(base).__module__.rpartition(".")[2]
    try:
        found = probe(name, image_size)
    except InputError as error:
        return BackboneInfo(name, family, (), 0, str(error))
    return BackboneInfo(name, family, found.features, found.params, "", found)
