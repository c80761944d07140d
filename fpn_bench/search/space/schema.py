"""What a search-space file may say: its keys, their types and their bounds."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, create_model, field_validator

from fpn_bench.data.formats import FORMATS
from fpn_bench.data.settings import FolderData
from fpn_bench.search.space.choices import Budget, PositiveInt, Rungs, SamplerConfig
from fpn_bench.search.space.dimensions import is_number
from fpn_bench.search.space.messages import Strict, expected
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe
from fpn_bench.vocabulary import AdapterName, CacheState, MemoryFormat, Mode, Precision
from fpn_bench.zoo.free import FreeSpace
from fpn_bench.zoo.merging_cells import MergingCells
from fpn_bench.zoo.pyramid_dags import PyramidDags

SCHEMA_VERSION = 1

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]
FREE: Mapping[str, type[FreeSpace[Any]]] = {cls.word: cls for cls in (MergingCells, PyramidDags)}
"""What ``free:`` can name."""

MAX_WHOLE = 1024
"""Largest whole number under ``neck:``: repeats, depths, heads, kernels; of the keys of `BOUNDS` it is another."""
MAX_CHOICES = 1000
"""Most values of one ``choices:``; each of them is built once when the space is checked."""
MAX_FREE = 256
"""Largest whole number in a free space: nodes, levels."""
MAX_LEVEL = 16
"""Coarsest pyramid level."""
BOUNDS = {"out_levels": MAX_LEVEL, **dict.fromkeys(("channels", "compressed", "feedforward"), 65_536)}
"""Key under ``neck:`` -> the largest whole number in it: a level, or channels."""
MAX_PIXELS = 16_384
"""Longest side of an image."""


def _pixels(value: Any) -> Any:
    """Says what to type instead of ``128`` and ``64x64``."""
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(type(side) is int for side in value)):
        text = "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        sides = [int(part) for part in text.lower().replace("x", " ").replace(",", " ").split() if part.isdecimal()]
        height, width = (sides * 2)[:2] if 0 < len(sides) <= 2 else (256, 256)
        raise expected("[height, width] in whole pixels", f"[{height}, {width}]")
    if not all(1 <= side <= MAX_PIXELS for side in value):
        raise expected(f"[height, width] of 1 to {MAX_PIXELS} pixels each", "[256, 256]")
    return tuple(value)


PixelSize = Annotated[tuple[int, int], BeforeValidator(_pixels)]
"""(height, width) in pixels."""


def _as_tuple(value: Any) -> Any:
    """What a validator has passed on is no JSON any more, in which a list may be a tuple."""
    return tuple(value) if isinstance(value, list) else value


Level = Annotated[int, Field(ge=0, le=MAX_LEVEL)]


class BackboneEntry(Strict):
    """A backbone and where its weights come from.

    Attributes:
        name: timm name.
        weights: None (seeded random), a .safetensors / .pth file, ``"hub"`` (timm's own pretrained weights) or
            ``"pip:PACKAGE"``.
        levels: pyramid levels it hands to the neck.
        adapter: what makes those that the model lacks: ``"simple"`` (a simple pyramid on its maps), ``"taps"`` (another
            depth of a plain transformer each), or ``"none"``, which refuses the model instead.
    """

    name: str
    weights: str | None = None
    levels: Annotated[tuple[Level, ...], BeforeValidator(_as_tuple)] = (3, 4, 5)
    adapter: AdapterName = "simple"

    @field_validator("levels")
    @classmethod
    def _contiguous(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or list(levels) != list(range(levels[0], levels[0] + len(levels))):
            raise expected("consecutive levels, finest first", "[3, 4, 5]")
        return levels


class SyntheticData(Strict):
    """The data set the package draws itself. What is left out takes the drawing's own default.

    Attributes:
        seed: of the drawing.
        train_images: images in the training split.
        val_images: images in the validation split.
        image_size: (height, width) of the files in pixels.
    """

    kind: Literal["synthetic"]
    seed: int = 0
    train_images: PositiveInt | None = None
    val_images: PositiveInt | None = None
    image_size: PixelSize | None = None


class LatencyConfig(Strict):
    """How candidates are run while their latency is measured; the device is the search's. See `profiling.Execution`.

    Attributes:
        batch: images a call.
        precision: ``"fp32"``, ``"tf32"``, ``"fp16"`` or ``"bf16"``.
        memory_format: ``"contiguous"`` or ``"channels_last"``.
        mode: ``"eager"``, ``"compiled"`` or ``"cuda_graph"``.
        cache: ``"warm"`` or ``"cold"``.
        threads: CPU threads; None leaves torch's setting.
        predict: where latency is bounded, predict it before anything is built, and reject what will break the bound.
    """

    batch: PositiveInt = 1
    precision: Precision = "fp32"
    memory_format: MemoryFormat = "contiguous"
    mode: Mode = "eager"
    cache: CacheState = "warm"
    threads: PositiveInt | None = None
    predict: bool = True


def _listed(value: Any) -> Any:
    """A single backbone is a list of one."""
    return [value] if isinstance(value, dict) else value


class SpaceFile(Strict):
    """The file as written. `Space` is what is made of it. `space_file` narrows ``data`` to what is known."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    backbone: Annotated[list[BackboneEntry], BeforeValidator(_listed)]
    data: SyntheticData | FolderData
    image_size: PixelSize
    head: HeadConfig = HeadConfig()
    training: TrainingRecipe = TrainingRecipe()
    latency: LatencyConfig = LatencyConfig()
    neck: dict[str, Any] = Field({})
    necks: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    seeds: Annotated[int, Field(gt=0, le=MAX_WHOLE)] | None = None
    objectives: dict[str, Literal["maximise", "minimise", "maximize", "minimize"]] = Field(
        {"ap": "maximise", "latency_ms": "minimise"}
    )
    constraints: list[str] = Field([])
    sampler: SamplerConfig = SamplerConfig()
    budget: Budget = Budget()
    rungs: Rungs = Rungs()
    enqueue: Literal["published", "none"] | list[dict[str, Any]] = "published"


def space_file() -> type[SpaceFile]:
    """`SpaceFile` with the data-set formats that are registered now, each with its own keys."""
    return _space_file(tuple(known.settings for known in FORMATS.values()))


@functools.cache
def _space_file(formats: tuple[type[FolderData], ...]) -> type[SpaceFile]:
    kinds: Any = Union[(SyntheticData, *formats)]  # of a tuple
    data = Annotated[kinds, Field(discriminator="kind")]
    return create_model("SpaceFile", __base__=SpaceFile, data=(data, ...))


def _number(value: Any) -> Any:
    """Refuses ``true`` and ``"3"``, which pydantic takes for numbers."""
    if not is_number(value):
        raise expected("a number")
    return value


_Number = Annotated[int | float, BeforeValidator(_number)]


class ChoicesFile(Strict):
    """What stands under a searched key whose values are listed."""

    choices: Annotated[list[Value], Field(min_length=1, max_length=MAX_CHOICES)]
    when: dict[str, Any] = Field({})


class RangeFile(Strict):
    """What stands under a searched key with a range."""

    range: tuple[_Number, _Number]
    step: _Number | None = None
    log: bool = False
    when: dict[str, Any] = Field({})


def _free_file(cls: type[FreeSpace[Any]]) -> type[BaseModel]:
    """What stands in the file beside ``free:``: the fields of the free space, and the condition."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {
        f.name: (_bounded(hints[f.name]), ... if f.default is dataclasses.MISSING else f.default)
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]  # each is one
    }
    return create_model(f"_{cls.__name__}File", __base__=Strict, free=(str, ...), when=(dict[str, Any], {}), **fields)


def _bounded(hint: Any) -> Any:
    """The type; whole numbers up to `MAX_FREE`."""
    if get_origin(hint) is tuple:
        return types.GenericAlias(tuple, (_bounded(get_args(hint)[0]), ...))
    return Annotated[int, Field(le=MAX_FREE)] if hint is int else hint


FREE_FILES = {word: _free_file(cls) for word, cls in FREE.items()}
"""What stands under a searched key of each free space."""
