"""Finds, on the meta device, which maps a timm model gives and how to make it run at a size.

Nothing is decided by the model's name. Ways to make a model run at a size are tried, least invasive first, until one
gives maps that follow the image. A map follows the image if its size is the image's divided by a reduction that the
model declares (rounded up or down), or else if it grows with the image; its growth gives its stride.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import timm
import torch
from torch import nn

from fpn_bench.backbones import store
from fpn_bench.backbones.models import architecture, build_model, cut, map_shapes, one_line
from fpn_bench.errors import InputError
from fpn_bench.pyramid import FeatureSpec, ImageSize

ANY_SIZE: ImageSize = (333, 257)
"""Represents any image size: at every level its sides lie between two multiples of the stride, which reveals models
that need multiples, and distinguishes rounding up from rounding down."""

STRIDE_TOLERANCE = 0.25
"""How far log2(stride) may lie from a level. Strides 7, 14 and 28 are off by 0.19, stride 12 by 0.42."""

LARGEST_REAL_BYTES = 4 << 30
"""Models whose code reads values cannot run on meta; those with less than this in weights are run on real tensors."""


@dataclass(frozen=True)
class Recipe:
    """How a model is made to run at a size.

    Attributes:
        options: keyword arguments for `timm.create_model`.
        multiple: sides of the images are padded to multiples of this.
        square: and then to the longer of the two.
        built_for: the one padded (height, width) that the model takes; None when it takes any.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    multiple: int = 1
    square: bool = False
    built_for: ImageSize | None = None

    def padded(self, image_size: ImageSize) -> ImageSize:
        """Size that images of `image_size` are padded to."""
        height, width = (-(-side // self.multiple) * self.multiple for side in image_size)
        return (max(height, width),) * 2 if self.square else (height, width)

    def __str__(self) -> str:
        words = [f"{key}={value}" for key, value in self.options.items()]
        words += [f"padded to multiples of {self.multiple}"] * (self.multiple > 1)
        words += ["padded to a square"] * self.square
        return ", ".join(words) or "as it is"


@dataclass(frozen=True)
class Probe:
    """What is known of a timm model.

    Attributes:
        name: timm's name, without a weights tag.
        recipe: how it is made to run at the size asked.
        features: levels the model itself has, finest first; the last map of each.
        indices: level -> index of its map for timm's `forward_intermediates`.
        strides: input pixels a map pixel of each of `features`, before the map is put on its level's grid.
        columnar: all its maps are alike: one stride, one width (plain vision transformers).
        maps: how many maps it has.
        params: parameters up to the last of `features`, classifier left out.
        default_size: (height, width) the model was published at.
    """

    name: str
    recipe: Recipe
    features: tuple[FeatureSpec, ...]
    indices: Mapping[int, int]
    strides: tuple[float, ...]
    columnar: bool
    maps: int
    params: int
    default_size: ImageSize

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of every tensor of the state dict of the whole classifier under the recipe, in order."""
        return state_shapes(self.name, self.recipe.options)

    def tensors_up_to(self, level: int) -> frozenset[str]:
        """Names of the tensors that the map of `level` needs."""
        with torch.random.fork_rng(devices=[]):
            model = build_model(self.name, device="meta", **self.recipe.options)
        cut(model, [self.indices[level]])
        return frozenset(model.state_dict())


def state_shapes(name: str, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the state dict of the whole classifier, in order."""
    # Some constructors draw random numbers even on meta; the caller's generator must not change.
    with torch.random.fork_rng(devices=[]):
        model = build_model(name, device="meta", **options)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@lru_cache(maxsize=512)
def probe(name: str, image_size: ImageSize | None = None, refuted: int = 0) -> Probe:
    """Find out what a backbone gives, without holding its weights in memory; the answer is stored on disk.

    Args:
        name: a timm name, with or without a weights tag.
        image_size: (height, width) the backbone must take. None asks for one that takes any size, or else its own.
        refuted: number of recipes to skip, which worked on meta and failed on real tensors.

    Raises:
        UnknownNameError: timm has no such model.
        InputError: there is no (further) way to have maps near the strides 2^k at that size.
    """
    base = architecture(name)
    answer = _stored_answer(base, image_size, refuted)
    if answer is None:
        try:
            with torch.random.fork_rng(devices=[]):
                answer = _Search(base, image_size).result(refuted)
        except InputError as error:
            answer = str(error)
        data = {"refused": answer} if isinstance(answer, str) else _to_dict(answer)
        store.save(base, image_size, refuted, data)
    if isinstance(answer, str):
        raise InputError(answer)
    return answer


def _stored_answer(name: str, image_size: ImageSize | None, refuted: int) -> Probe | str | None:
    """The stored answer: what was found, or why nothing was; None if there is none that can be read."""
    data = store.load(name, image_size, refuted)
    if data is None:
        return None
    try:
        return str(data["refused"]) if "refused" in data else _from_dict(name, data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, InputError):
        return None  # stored by another version of this code


class _Refused(Exception):
    """A way gives maps that do not follow the image."""


class _ReadsValues(Exception):
    """The model's code reads values of tensors, which meta does not have."""


@dataclass(frozen=True)
class _Way:
    """One way to make a model run at sizes other than its own.

    Attributes:
        options: padded size -> keyword arguments for `timm.create_model`.
        multiples: tried in this order; 0 stands for the coarsest reduction that the model declares.
        sized: the model is rebuilt for every size.
        square: the size must be square.
    """

    options: Callable[[ImageSize], dict[str, Any]]
    multiples: tuple[int, ...]
    sized: bool = False
    square: bool = False

    def recipe(self, image_size: ImageSize, multiple: int) -> Recipe:
        padded = Recipe({}, multiple, self.square).padded(image_size)
        return Recipe(self.options(padded), multiple, self.square, padded if self.sized else None)


def _ways(fixed: bool, default_size: ImageSize) -> Iterator[_Way]:
    """Least invasive first: no change or what timm offers at run time, then building for the size, then large padding.

    If a model declares a fixed input size and runs at another, the result is not trusted: it may index tables made for
    its own size.
    """

    def plain(_: ImageSize) -> dict[str, Any]:
        return {}

    def dynamic(_: ImageSize) -> dict[str, Any]:
        return {"dynamic_img_size": True}

    def sized(padded: ImageSize) -> dict[str, Any]:
        return {"img_size": padded}

    def side(padded: ImageSize) -> dict[str, Any]:
        return {"img_size": max(padded)}

    far = (48, 64, 128, 224, 256)  # products of the strides and windows known
    if not fixed:
        yield _Way(plain, (1, 0, 32))
    yield _Way(dynamic, (1, 0, 32))
    yield _Way(sized, (32, 0), sized=True)
    yield _Way(side, (32, 0), sized=True)
    yield _Way(side, (32, 0), sized=True, square=True)
    yield _Way(plain, (1, 0, 32, *far) if fixed else far)
    yield _Way(sized, far, sized=True)
    if default_size[0] == default_size[1]:
        yield _Way(plain, (default_size[0],))


@dataclass(frozen=True)
class _Layout:
    """What a recipe gives: every map's stride in pixels, channels, and how well the maps cover the image.

    Attributes:
        exact: every map has the size that its declared reduction says, and none ends before the image does.
        covers: no map ends before the image does, or the image is a multiple of the coarsest stride, so that
            padding would not help (convolutions without padding).
    """

    recipe: Recipe
    model: nn.Module
    strides: tuple[float, ...]
    channels: tuple[int, ...]
    exact: bool
    covers: bool


class _Search:
    """One search for recipes of one model at one size."""

    def __init__(self, name: str, image_size: ImageSize | None) -> None:
        self.name = name
        self.image_size = image_size
        config: Any = timm.get_pretrained_cfg(name)
        self.default_size: ImageSize = (config.input_size[-2], config.input_size[-1])
        self.fixed = bool(config.fixed_input_size)
        self.device = "meta"
        self.reasons: list[tuple[int, str]] = []
        self.built: dict[str, nn.Module] = {}

    def result(self, refuted: int) -> Probe:
        """The first layout behind those refuted that has a level.

        Raises:
            InputError: there is none.
        """
        try:
            found = next(self._of_levels(refuted), None)
        except _ReadsValues as error:
            weights = sum(p.numel() for p in build_model(self.name, device="meta").parameters()) * 4
            if weights > LARGEST_REAL_BYTES:
                raise InputError(
                    f"backbone {self.name!r} reads values of its tensors ({error}) and cannot be tried out on the meta "
                    f"device; its weights of {weights / 2**30:.1f} GiB are too many to try it out on real ones"
                ) from error
            self.device = "cpu"
            self.built.clear()
            found = next(self._of_levels(refuted), None)
        if found is None:
            raise InputError(self._refusal())
        return self._probe(*found)

    def _of_levels(self, refuted: int) -> Iterator[tuple[_Layout, dict[int, int]]]:
        recipes: list[Recipe] = []
        for layout in self._layouts():
            if layout.recipe in recipes:
                continue
            recipes.append(layout.recipe)
            indices = _levels(layout.strides)
            if not indices:
                strides = ", ".join(f"{s:.3g}" for s in dict.fromkeys(layout.strides))
                self.reasons.append((0, f"its maps have stride {strides}; expected strides near 2, 4, 8, 16, 32 ..."))
            elif refuted:
                refuted -= 1
            else:
                yield layout, indices

    def _probe(self, layout: _Layout, indices: dict[int, int]) -> Probe:
        cut(layout.model, list(indices.values()))
        kinds = set(zip(layout.strides, layout.channels, strict=True))
        return Probe(
            name=self.name,
            recipe=layout.recipe,
            features=tuple(FeatureSpec(level, layout.channels[i], 2**level) for level, i in indices.items()),
            indices=indices,
            strides=tuple(layout.strides[i] for i in indices.values()),
            columnar=len(kinds) == 1 and len(layout.strides) > 1,
            maps=len(layout.strides),
            params=sum(p.numel() for p in layout.model.parameters()),
            default_size=self.default_size,
        )

    def _refusal(self) -> str:
        size = "images of other sizes" if self.image_size is None else f"image_size={self.image_size}"
        return (
            f"backbone {self.name!r} cannot take {size} ({min(self.reasons)[1]}): its own size is "
            f"image_size={self.default_size}"
        )

    def _layouts(self) -> Iterator[_Layout]:
        """Every layout found, best first."""
        size = self.image_size or ANY_SIZE
        for way in _ways(self.fixed, self.default_size):
            if self.image_size is not None or not (way.sized or (self.fixed and not way.options(size))):
                yield from self._layouts_of(way, size)
        if self.image_size is None:
            for way in (
                _Way(lambda _: {}, (1,), sized=True),
                _Way(lambda padded: {"img_size": padded}, (1,), sized=True),
            ):
                yield from self._layouts_of(way, self.default_size)

    def _layouts_of(self, way: _Way, image_size: ImageSize) -> Iterator[_Layout]:
        """Layouts of one way, by growing multiple."""
        loose: _Layout | None = None
        for multiple in way.multiples:
            if loose is None and (layout := self._layout(way, image_size, multiple or self._coarsest(way))):
                if layout.exact:
                    yield layout
                    continue
                # Padding to the coarsest stride keeps the last pixels where maps are rounded down, and twice that
                # suits models that want even maps. Where neither helps, the maps are taken as they are.
                coarsest = self._coarsest(way)
                others = [self._layout(way, image_size, m) for m in (coarsest, 2 * coarsest)]
                found = [other for other in others if other is not None]
                exact = next((other for other in found if other.exact), None)
                loose = exact or next((other for other in (layout, *found) if other.covers), None)
                if loose is not None:
                    yield loose

    def _coarsest(self, way: _Way) -> int:
        """The coarsest reduction that the model last built declares."""
        model = next(reversed(self.built.values()), None)
        return max(_declared_reductions(model), default=32) if model is not None else 32

    def _build(self, options: Mapping[str, Any]) -> nn.Module:
        key = repr(options)
        if key not in self.built:
            if self.device != "meta":
                self.built.clear()  # real weights: one model at a time
            self.built[key] = build_model(self.name, device=self.device, **options)
        return self.built[key]

    def _layout(self, way: _Way, image_size: ImageSize, multiple: int) -> _Layout | None:
        recipe = way.recipe(image_size, multiple)
        # timm's models refuse a size by any exception (AssertionError, RuntimeError, TypeError ...).
        try:
            return self._measured(way, recipe, recipe.padded(image_size))
        except _Refused as error:
            self.reasons.append((0, str(error)))
        except Exception as error:
            if self.device == "meta" and "meta" in str(error):
                raise _ReadsValues(one_line(error)) from error
            # A model's message on the size is more useful than one on a missing constructor argument.
            self.reasons.append((1 + isinstance(error, TypeError), one_line(error)))
        return None

    def _measured(self, way: _Way, recipe: Recipe, padded: ImageSize) -> _Layout:
        """The layout of one recipe.

        Raises:
            _Refused: the maps do not grow with the image.
            Exception: any, from a model that does not take the size.
        """
        model = self._build(recipe.options)
        size = padded
        if recipe.built_for is None and padded[0] == padded[1]:
            # On an oblong image, maps that do not follow it cannot have the right size by coincidence.
            size = (padded[0], padded[1] + -(-64 // recipe.multiple) * recipe.multiple)
        shapes = map_shapes(model, size)
        claims = _declared_reductions(model)
        strides: list[float | None] = [next((c for c in claims if _has_stride(size, s, c)), None) for s in shapes]
        exact = None not in strides
        if not exact:
            step = -(-512 // recipe.multiple) * recipe.multiple
            bigger = (size[0] + step, size[1] + step)
            grown = self._build(recipe.options if recipe.built_for is None else way.options(bigger))
            slopes = [_slope(step, a, b, claims) for a, b in zip(shapes, map_shapes(grown, bigger), strict=True)]
            strides = [known or slope for known, slope in zip(strides, slopes, strict=True)]
        found = [float(s) for s in strides if s is not None]
        short = any(
            side > n * stride
            for s, stride in zip(shapes, found, strict=True)
            for side, n in zip(size, s[2:], strict=True)
        )
        coarsest = round(max(found))
        return _Layout(
            recipe,
            model,
            tuple(found),
            tuple(s[1] for s in shapes),
            exact=exact and not short,
            covers=not short or not any(side % coarsest for side in size),
        )


def _declared_reductions(model: nn.Module) -> list[int]:
    """The reductions that a model declares, finest first."""
    return sorted({info["reduction"] for info in model.feature_info})  # type: ignore[union-attr]


def _has_stride(image_size: ImageSize, shape: torch.Size, stride: float) -> bool:
    """Whether a map [N, C, H, W] has the size of the image divided by `stride`, rounded up or down."""
    return all(n in (side // stride, -(-side // stride)) for side, n in zip(image_size, shape[2:], strict=True))


def _slope(step: int, shape: torch.Size, bigger: torch.Size, claims: list[int]) -> float:
    """Stride of the map, from how much it grew when both sides of the image grew by `step` pixels.

    Raises:
        _Refused: it did not grow, or not alike in both directions.
    """
    grown = [b - a for a, b in zip(shape[2:], bigger[2:], strict=True)]
    if min(grown) <= 0:
        raise _Refused(f"its maps do not follow the image: one is {shape[2]}x{shape[3]} whatever the image's size")
    if max(grown) - min(grown) > 2:
        raise _Refused(f"a map grows by {grown[0]}x{grown[1]} pixels where the image grows by {step}x{step}")
    declared = next((c for c in claims if all(abs(step / c - n) <= 1 for n in grown)), None)
    return float(declared) if declared else step / math.sqrt(grown[0] * grown[1])


def _levels(strides: tuple[float, ...]) -> dict[int, int]:
    """Level -> index of the last map of its stride, finest first."""
    indices: dict[int, int] = {}
    for index, stride in enumerate(strides):
        level = round(math.log2(stride))
        if level >= 0 and abs(math.log2(stride) - level) < STRIDE_TOLERANCE:
            indices[level] = index
    return dict(sorted(indices.items()))


def _to_dict(found: Probe) -> dict[str, Any]:
    recipe = found.recipe
    return {
        "options": recipe.options,
        "multiple": recipe.multiple,
        "square": recipe.square,
        "built_for": recipe.built_for,
        "levels": [
            [s.level, s.channels, found.indices[s.level], t] for s, t in zip(found.features, found.strides, strict=True)
        ],
        "columnar": found.columnar,
        "maps": found.maps,
        "params": found.params,
        "default_size": found.default_size,
    }


def _from_dict(name: str, data: Mapping[str, Any]) -> Probe:
    built_for = data["built_for"]
    return Probe(
        name=name,
        recipe=Recipe(
            {key: tuple(v) if isinstance(v, list) else v for key, v in data["options"].items()},
            data["multiple"],
            data["square"],
            None if built_for is None else (built_for[0], built_for[1]),
        ),
        features=tuple(FeatureSpec(level, channels, 2**level) for level, channels, _, _ in data["levels"]),
        indices={level: index for level, _, index, _ in data["levels"]},
        strides=tuple(stride for *_, stride in data["levels"]),
        columnar=data["columnar"],
        maps=data["maps"],
        params=data["params"],
        default_size=(data["default_size"][0], data["default_size"][1]),
    )
