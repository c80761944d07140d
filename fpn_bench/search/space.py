"""The search space as data: a YAML file a person writes by hand, read strictly.

A space names what is searched (the values under `neck:` and a list under `backbone:`), what it is judged by
(objectives, hard constraints, protocol) and how (sampler, budget, rungs). Any value under `neck:` is one of::

    merge: sum                                          # a constant
    merge: {choices: [sum, max]}                        # a choice; lists are allowed as values
    repeats: {range: [1, 3]}                            # whole numbers; with `step:` or `log: true`
    repeats: {range: [1, 3], when: {family: pafpn}}     # asked only when the condition holds
    cell: {free: merging_cells, levels: [3, 4, 5]}      # any cell of `fpn_bench.zoo.merging_cells.MergingCells`
    dag: {free: pyramid_dags, nodes: 3}                 # any DAG of `fpn_bench.zoo.pyramid_dags.PyramidDags`

A key whose condition does not hold, or that the chosen neck family does not know, is left to the family's default.
Prefer a `range` to numeric `choices` where the order matters: samplers take choices as unordered.

A choice set holds the searched keys alone, without the constants.

A *suite* is a space whose candidates are listed instead of searched: each of ``necks:`` on each backbone (or the
one that its `backbone:` names), trained ``seeds:`` times; ``neck:`` then holds constants for all of them::

    neck: {channels: 64, out_levels: [3, 4, 5]}
    necks: [{family: fpn}, {family: fpn, merge: max}, {family: bifpn, repeats: 3}]
    seeds: 3
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import json
import math
import random
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    create_model,
    field_validator,
)

import fpn_bench
from fpn_bench import zoo
from fpn_bench.analysis.rows import Objective, parse_direction
from fpn_bench.errors import FormatVersionError, InputError, SpaceError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.search.dimensions import (
    COSTS,
    OBJECTIVES,
    ChoiceDimension,
    Choices,
    ChoiceSpace,
    Constraint,
    Dimension,
    Enqueued,
    FreeDimension,
    RangeDimension,
    is_number,
    number_text,
    order,
    same,
)
from fpn_bench.search.plan import Budget, Rungs, SamplerConfig
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe
from fpn_bench.zoo.free import FreeSpace
from fpn_bench.zoo.merging_cells import MergingCells
from fpn_bench.zoo.pyramid_dags import PyramidDags

SCHEMA_VERSION = 1

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]
BASELINES = ("fpn", "pafpn", "channel_mapper", "top_only")
"""Published necks every front is read against, whether or not the space searches their family."""
FREE: Mapping[str, type[FreeSpace[Any]]] = {cls.word: cls for cls in (MergingCells, PyramidDags)}
"""What ``free:`` can name."""
_options = functools.cache(zoo.options)
_OWN_KEYS = ("family", "channels", "out_levels")
_CHECKED_AT_MOST = 256


# --------------------------------------------------------------------------------------------------------------
# The file


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneEntry(_Strict):
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
    levels: tuple[int, ...] = (3, 4, 5)
    adapter: Literal["simple", "taps", "none"] = "simple"

    @field_validator("levels")
    @classmethod
    def _contiguous(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or list(levels) != list(range(levels[0], levels[0] + len(levels))):
            raise ValueError(f"{list(levels)} came; consecutive levels, finest first, are wanted, e.g. [3, 4, 5]")
        return levels


class SyntheticData(_Strict):
    """The data set the package draws itself. What is left out takes the drawing's own default.

    Attributes:
        seed: of the drawing.
        train_images: images in the training split.
        val_images: images in the validation split.
        image_size: (height, width) of the files in pixels.
    """

    kind: Literal["synthetic"]
    seed: int = 0
    train_images: Annotated[int, Field(gt=0)] | None = None
    val_images: Annotated[int, Field(gt=0)] | None = None
    image_size: tuple[int, int] | None = None


_ValFraction = Annotated[float, Field(gt=0, lt=1)] | None


class CocoData(_Strict):
    """A data set in COCO format. ``root`` may be left to the command line's ``--data``.

    Attributes:
        root: folder of annotations and images.
        splits: split -> [annotation file, image folder], relative to `root` where that is given; for other layouts.
        skip_unreadable: go on without images that cannot be read.
        val_fraction: share of the images held out as val, of a data set that has none.
        allow_images_from: folders outside the data set's own that files may be read from.
    """

    kind: Literal["coco"]
    root: str | None = None
    splits: dict[str, tuple[str, str]] | None = None
    skip_unreadable: bool = False
    val_fraction: _ValFraction = None
    allow_images_from: list[str] | None = None


class VocData(_Strict):
    """A data set in Pascal VOC format. ``root`` may be left to the command line's ``--data``.

    Attributes:
        root: folder of annotations and images.
        one_based: pixels are counted from 1 and boxes include their last one, as in VOC itself; false where a tool
            wrote corners counted from 0.
        difficult: ``"ignore"`` makes difficult objects regions to ignore, ``"keep"`` ordinary objects.
        skip_unreadable: go on without images that cannot be read.
        val_fraction: share of the images held out as val, of a data set that has none.
        allow_images_from: folders outside the data set's own that files may be read from.
    """

    kind: Literal["voc"]
    root: str | None = None
    one_based: bool = True
    difficult: Literal["ignore", "keep"] = "ignore"
    skip_unreadable: bool = False
    val_fraction: _ValFraction = None
    allow_images_from: list[str] | None = None


class YoloData(_Strict):
    """A data set in YOLO format. ``root`` may be left to the command line's ``--data``.

    Attributes:
        root: folder of ``data.yaml``, or that file.
        skip_unreadable: go on without images that cannot be read.
        val_fraction: share of the images held out as val, of a data set that has none.
        allow_images_from: folders outside the data set's own that files may be read from.
    """

    kind: Literal["yolo"]
    root: str | None = None
    skip_unreadable: bool = False
    val_fraction: _ValFraction = None
    allow_images_from: list[str] | None = None


class LatencyConfig(_Strict):
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

    batch: Annotated[int, Field(gt=0)] = 1
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    mode: Literal["eager", "compiled", "cuda_graph"] = "eager"
    cache: Literal["warm", "cold"] = "warm"
    threads: Annotated[int, Field(gt=0)] | None = None
    predict: bool = True


class SpaceFile(_Strict):
    """The file as written. `Space` is what is made of it."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    backbone: Annotated[list[BackboneEntry], BeforeValidator(lambda b: [b] if isinstance(b, dict) else b)]
    data: Annotated[SyntheticData | CocoData | VocData | YoloData, Field(discriminator="kind")]
    image_size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    head: HeadConfig = HeadConfig()
    training: TrainingRecipe = TrainingRecipe()
    latency: LatencyConfig = LatencyConfig()
    neck: dict[str, Any] = {}
    necks: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    seeds: Annotated[int, Field(gt=0)] | None = None
    objectives: dict[str, Literal["maximise", "minimise", "maximize", "minimize"]] = {
        "ap": "maximise",
        "latency_ms": "minimise",
    }
    constraints: list[str] = []
    sampler: SamplerConfig = SamplerConfig()
    budget: Budget = Budget()
    rungs: Rungs = Rungs()
    enqueue: Literal["published", "none"] | list[dict[str, Any]] = "published"


def _number(value: Any) -> Any:
    """Refuses ``true`` and ``"3"``, which pydantic takes for numbers."""
    if not is_number(value):
        raise ValueError("a number is wanted")
    return value


_Number = Annotated[int | float, BeforeValidator(_number)]


class _ChoicesFile(_Strict):
    choices: Annotated[list[Value], Field(min_length=1)]
    when: dict[str, Any] = {}


class _RangeFile(_Strict):
    range: tuple[_Number, _Number]
    step: _Number | None = None
    log: bool = False
    when: dict[str, Any] = {}


def _free_file(cls: type[FreeSpace[Any]]) -> type[BaseModel]:
    """What stands in the file beside ``free:``: the fields of the free space, and the condition."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {
        f.name: (_strict(hints[f.name]), ... if f.default is dataclasses.MISSING else f.default)
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]  # each is one
    }
    return create_model(f"_{cls.__name__}File", __base__=_Strict, free=(str, ...), when=(dict[str, Any], {}), **fields)


def _strict(hint: Any) -> Any:
    """The type, but whole numbers are neither ``true`` nor ``"3"``."""
    if get_origin(hint) is tuple:
        return types.GenericAlias(tuple, (_strict(get_args(hint)[0]), ...))
    return StrictInt if hint is int else hint


_FREE_FILES = {word: _free_file(cls) for word, cls in FREE.items()}


# --------------------------------------------------------------------------------------------------------------
# What is made of it


class Space(ChoiceSpace):
    """A search space: what may be chosen, and what the choices are judged by.

    Make one with `Space.load` or `Space.from_dict`.
    """

    def __init__(self, raw: Mapping[str, Any], *, source: str = "space", text: str | None = None) -> None:
        """See `from_dict`; ``source`` opens the error messages, ``text`` is the file as written."""
        self.source = source
        self.raw = dict(raw)
        self._text = text
        file = self._read_file()
        self.backbones = tuple(file.backbone)
        self.data = file.data
        self.image_size = file.image_size
        self.head = file.head
        self.training = file.training
        self.latency = file.latency
        self.families: tuple[str, ...]
        self.listed = self._check_listed(file)
        self.seeds = file.seeds or 1
        self._necks = tuple(file.necks or ())
        constants, dimensions, self.families = self._read_neck(file)
        super().__init__(
            dimensions,
            self._read_objectives(file),
            constraints=[self._read_constraint(i, text) for i, text in enumerate(file.constraints)],
            sampler=SamplerConfig(kind="random") if self.listed else file.sampler,
            budget=file.budget,
            rungs=file.rungs,
            full_epochs=file.training.epochs,
            constants=constants,
            name=file.name,
            source=source,
        )
        if self.listed:
            self.budget = file.budget.model_copy(update={"trials": len(list(self.enumerate())) * self.seeds})
        self._enqueue = file.enqueue
        if isinstance(file.enqueue, list):
            for i, choices in enumerate(file.enqueue):
                self._check_enqueued(f"enqueue[{i}]", choices)
        for i, choices in enumerate(self._necks):
            self._check_enqueued(f"necks[{i}]", choices)

    @classmethod
    def load(cls, path_or_name: str | Path) -> Self:
        """A space from a YAML file, or a shipped one by its name (`list_spaces`, `list_suites`).

        Raises:
            SpaceError: the file is missing, is no YAML, or says something a space cannot say.
            FormatVersionError: it was written for a newer fpn_bench.
        """
        path = Path(path_or_name)
        if not path.is_file():
            shipped = {**_shipped("suites"), **_shipped()}
            name = str(path_or_name)
            if name not in shipped:
                if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
                    raise SpaceError(f"search space {name} does not exist; shipped ones: {', '.join(sorted(shipped))}")
                raise UnknownNameError("search space", name, shipped, hint="fpn-bench spaces")
            path = shipped[name]
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise SpaceError(f"{path}: {_yaml_problem(error)}") from error
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "space") -> Self:
        """A space from the text of a YAML file; ``source`` opens error messages. Raises as `load` does."""
        try:
            raw = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise SpaceError(f"{source}: {_yaml_problem(error)}") from error
        if not isinstance(raw, dict):
            raise SpaceError(
                f"{source}: {_kind_of(raw)} came; a mapping of keys (name:, backbone:, neck: ...) is wanted"
            )
        return cls(raw, source=source, text=text)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """A space from the content of a YAML file. Raises as `load` does."""
        return cls(raw)

    def replace(self, **changes: Any) -> Self:
        """A copy with top-level keys of the file replaced, e.g. ``space.replace(data={"kind": "coco", ...})``."""
        return type(self)({**self.raw, **changes}, source=self.source)

    # -- reading ------------------------------------------------------------------------------------------------

    def _read_file(self) -> SpaceFile:
        version = self.raw.get("schema_version", SCHEMA_VERSION)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise FormatVersionError(
                f"{self.source}: schema_version {version} came, this fpn_bench reads up to {SCHEMA_VERSION}: upgrade it"
            )
        return self._validated(SpaceFile, self.raw, "")

    def _validated(self, model: type[_Model], raw: Any, path: str) -> _Model:
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            # A misspelt key also leaves the right one missing: say the misspelling first.
            problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise SpaceError(f"{self.source}: {_problem(model, raw, problems[0], path)}{more}") from error

    def _check_listed(self, file: SpaceFile) -> bool:
        """Whether candidates are listed; what only a search reads must then be away, and the other way round."""
        listed = file.necks is not None
        unread = ("sampler", "rungs", "enqueue") if listed else ("seeds",)
        for key in unread:
            if key in self.raw:
                why = (
                    "`necks:` lists what is trained, nothing is sampled" if listed else "`necks:` did not come with it"
                )
                raise SpaceError(f"{self.source}: {key}: {self.raw[key]} came, but {why}: leave it out")
        if listed and file.budget.model_fields_set & {"trials", "confirm", "seeds", "until"}:
            raise SpaceError(
                f"{self.source}: budget: {self.raw['budget']} came, but `necks:` and `seeds:` say what is trained: "
                "hours, retries and trial_minutes alone are read"
            )
        if not listed and "neck" not in self.raw:
            raise SpaceError(f"{self.source}: neck: nothing came; this key is wanted (or necks:, a list of candidates)")
        return listed

    def _read_objectives(self, file: SpaceFile) -> tuple[Objective, ...]:
        if not file.objectives:
            raise SpaceError(f"{self.source}: objectives: none came; at least one is wanted, e.g. {{ap: maximise}}")
        for name, direction in file.objectives.items():
            if name not in OBJECTIVES:
                raise self._unknown("objectives", "objective", name, OBJECTIVES)
            if parse_direction(direction) != OBJECTIVES[name]:
                raise SpaceError(f"{self.source}: objectives.{name}: {direction} came; {OBJECTIVES[name]} is wanted")
        return tuple(Objective(name, OBJECTIVES[name]) for name in file.objectives)

    def _read_constraint(self, index: int, text: str) -> Constraint:
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*", text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise SpaceError(
                f"{self.source}: constraints[{index}]: {text!r} came; NAME <= NUMBER is wanted, e.g. 'params <= 5e6'"
            )
        if match[1] not in COSTS:
            raise self._unknown(f"constraints[{index}]", "constrained quantity", match[1], COSTS)
        return Constraint(f"{match[1]} {match[2]} {number_text(bound)}", match[1], bound, match[2] == "<=")

    def _read_neck(self, file: SpaceFile) -> tuple[dict[str, Any], dict[str, Dimension], tuple[str, ...]]:
        constants: dict[str, Any] = {}
        dimensions: dict[str, Dimension] = {}
        if isinstance(self.raw["backbone"], list):
            labels = [e.name for e in file.backbone]
            if len(set(labels)) < len(labels) or not labels:
                raise SpaceError(f"{self.source}: backbone: {labels} came; different names, at least one, are wanted")
            dimensions["backbone"] = ChoiceDimension("backbone", tuple(labels), {})
        if self.listed:
            return self._read_defaults(file), dimensions, tuple(dict.fromkeys(self._families_listed(file)))
        if "family" not in file.neck:
            near = difflib.get_close_matches("family", file.neck, n=1)
            came = f"{near[0]!r}" if near else "nothing"
            necks = ", ".join(zoo.list_necks())
            raise SpaceError(f"{self.source}: neck: {came} came; `family:` is wanted, one or a choice of {necks}")
        for key, raw in file.neck.items():
            read = self._read_dimension(key, raw)
            if isinstance(read, Dimension):
                dimensions[key] = read
            else:
                constants[key] = read
        families = tuple(dimensions["family"].enumerate()) if "family" in dimensions else (constants["family"],)
        for family in families:
            if not isinstance(family, str) or family not in zoo.list_necks():
                raise self._unknown("neck.family", "neck", str(family), zoo.list_necks(), "fpn-bench necks")
        known = {*_OWN_KEYS, *itertools.chain.from_iterable(_options(f) for f in families)}
        for key in file.neck:
            if key not in known:
                raise self._unknown("neck", "key", key, known)
        return constants, self._in_asking_order(dimensions, constants), families

    def _families_listed(self, file: SpaceFile) -> list[str]:
        return [self._family_of(f"necks[{i}]", neck, file.neck) for i, neck in enumerate(file.necks or ())]

    def _family_of(self, path: str, choices: Mapping[str, Any], constants: Mapping[str, Any]) -> str:
        """The neck family of what a file lists."""
        family = choices.get("family", constants.get("family"))
        if family is None:
            raise SpaceError(f"{self.source}: {path}: no `family:` came; say which neck it is")
        if family not in zoo.list_necks():
            raise self._unknown(path, "neck", str(family), zoo.list_necks(), "fpn-bench necks")
        return str(family)

    def _read_defaults(self, file: SpaceFile) -> dict[str, Any]:
        """What all listed necks have that do not say otherwise."""
        known = {*_OWN_KEYS, *itertools.chain.from_iterable(_options(f) for f in self._families_listed(file))}
        for key, value in file.neck.items():
            if key not in known:
                raise self._unknown("neck", "key", key, known)
            if isinstance(value, dict):
                raise SpaceError(f"{self.source}: neck.{key}: {value} came, but `necks:` lists what varies: a constant")
        return dict(file.neck)

    def _read_dimension(self, key: str, raw: Any) -> Any:
        path = f"neck.{key}"
        if isinstance(raw, dict):
            kinds = [k for k in ("choices", "range", "free") if k in raw]
            if len(kinds) > 1:
                came = " and ".join(f"`{k}:`" for k in kinds)
                raise SpaceError(
                    f"{self.source}: {path}: {came} came; one of `choices:`, `range:` and `free:` is wanted"
                )
            if "range" in raw:
                return self._range(key, self._validated(_RangeFile, raw, path))
            if "free" in raw:
                return self._free(key, raw)
            if not kinds:
                known = {*_ChoicesFile.model_fields, *_RangeFile.model_fields, "free"}
                wrong = next((k for k in raw if k not in known), None)
                if wrong is not None:
                    raise self._unknown(path, "key", str(wrong), known)
                raise SpaceError(
                    f"{self.source}: {path}: {raw} came; a constant, `choices:`, `range:` or `free:` is wanted"
                )
            listed = self._validated(_ChoicesFile, raw, path)
            twice = [v for i, v in enumerate(listed.choices) if any(same(v, w) for w in listed.choices[:i])]
            if twice:
                raise SpaceError(f"{self.source}: {path}.choices: {twice[0]!r} came twice; each value once is wanted")
            return ChoiceDimension(key, tuple(listed.choices), _conditions(listed.when))
        return raw

    def _range(self, key: str, file: _RangeFile) -> RangeDimension:
        path = f"{self.source}: neck.{key}"
        low, high = file.range
        whole = all(isinstance(v, int) for v in (low, high, file.step or 1))
        step = file.step if file.step is not None or not whole else 1
        if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
            raise SpaceError(f"{path}.range: [{low}, {high}] came; [low, high] with low < high is wanted")
        if file.log and (low <= 0 or file.step is not None):
            raise SpaceError(f"{path}: a range with log: true wants low > 0 and no step")
        if step is not None:
            if step <= 0:
                raise SpaceError(f"{path}.step: {step} came; a step > 0 is wanted")
            steps = (high - low) / step
            if not math.isclose(steps, round(steps), abs_tol=1e-9):
                end = low + math.floor(steps) * step
                raise SpaceError(f"{path}: steps of {step} from {low} do not end on {high}; {end:g} would be the end")
        if not whole:
            low, high = float(low), float(high)
        return RangeDimension(key, low, high, step, file.log, _conditions(file.when))

    def _free(self, key: str, raw: Mapping[str, Any]) -> FreeDimension:
        path = f"neck.{key}"
        word = raw["free"]
        if not isinstance(word, str) or word not in FREE:
            raise self._unknown(f"{path}.free", "free space", str(word), FREE)
        if key != FREE[word].option:
            raise SpaceError(f"{self.source}: {path}: free: {word} came; it makes values of `{FREE[word].option}:`")
        values = dict(self._validated(_FREE_FILES[word], raw, path))
        del values["free"]
        when = _conditions(values.pop("when"))
        try:
            return FreeDimension(key, FREE[word](**values), when)
        except InputError as error:
            raise SpaceError(f"{self.source}: {path}: {error}") from error

    def _in_asking_order(self, dimensions: dict[str, Dimension], constants: dict[str, Any]) -> dict[str, Dimension]:
        """Each key after those its condition reads, `family` as early as can be; the written order else."""
        ordered: dict[str, Dimension] = {}
        waiting = {k: dimensions[k] for k in sorted(dimensions, key=lambda k: k != "family")}
        while waiting:
            ready = next((k for k, d in waiting.items() if not any(w in waiting for w in d.when)), None)
            if ready is None:
                raise SpaceError(f"{self.source}: the `when:` of {', '.join(waiting)} wait for each other")
            dimension = ordered[ready] = waiting.pop(ready)
            for other, wanted in dimension.when.items():
                if isinstance(dimensions.get(other), FreeDimension):
                    raise SpaceError(f"{self.source}: neck.{ready}.when: {other!r} is free; no condition can read it")
                if other in dimensions:
                    values = [v for v in wanted if dimensions[other].contains(v)]
                elif other in constants:
                    values = [v for v in wanted if same(v, constants[other])]
                else:
                    raise self._unknown(f"neck.{ready}.when", "key", other, {*dimensions, *constants} - {ready})
                if not values:
                    raise SpaceError(f"{self.source}: neck.{ready}.when.{other}: {list(wanted)} can never hold")
        return ordered

    def _check_enqueued(self, path: str, choices: Mapping[str, Any]) -> None:
        family = self._family_of(path, choices, self.constants)
        known = {*_OWN_KEYS, *_options(family), *(["backbone"] if "backbone" in self.dimensions else [])}
        for key in choices:
            if key not in known:
                raise self._unknown(path, "key", key, known)
        for key in () if self.listed else ("backbone", "channels", "out_levels"):
            if key in self.dimensions and key not in choices:
                raise SpaceError(f"{self.source}: {path}: no `{key}:` came; a candidate to enqueue says it")
        if "backbone" in choices and not self.dimensions["backbone"].contains(choices["backbone"]):
            names = [e.name for e in self.backbones]
            raise self._unknown(path, "backbone of this space", str(choices["backbone"]), names)

    def _unknown(self, path: str, kind: str, name: str, known: Iterable[str], hint: str | None = None) -> SpaceError:
        return SpaceError(f"{self.source}: {path}: {UnknownNameError(kind, name, known, hint)}")

    # -- the set of choice sets ---------------------------------------------------------------------------------

    def enumerate(self) -> Iterator[Choices]:
        """See `ChoiceSpace.enumerate`; of a suite what it lists."""
        if not self.listed:
            return super().enumerate()
        several = "backbone" in self.dimensions
        return (
            {**({"backbone": entry.name} if several else {}), **neck}
            for entry in self.backbones
            for neck in self._necks
            if neck.get("backbone", entry.name) == entry.name
        )

    @cached_property
    def size(self) -> int | None:
        """See `ChoiceSpace.size`; of a suite the number of listed candidates."""
        return len(list(self.enumerate())) if self.listed else super().size

    def is_asked(self, key: str, choices: Mapping[str, Any]) -> bool:
        """Whether ``key`` is searched: the neck family knows it, and its condition holds."""
        if key not in (*_OWN_KEYS, "backbone"):
            settings = {**self.constants, **choices}
            if key not in _options(settings["family"]):
                return False
        return super().is_asked(key, choices)

    @property
    def _steering(self) -> set[str]:
        return {"family", *super()._steering}

    # -- from a choice set to a candidate -----------------------------------------------------------------------

    def settings(self, choices: Mapping[str, Any]) -> Choices:
        """Constants and choices together: what `zoo.create_graph` is given, `backbone` aside."""
        family = choices.get("family", self.constants.get("family"))
        known = {*_OWN_KEYS, *_options(str(family))}
        settings = {k: v for k, v in self.constants.items() if k in known}
        return {**settings, **{k: v for k, v in choices.items() if k != "backbone"}}

    def family(self, choices: Mapping[str, Any]) -> str:
        """The neck family of a choice set."""
        return str(self.settings(choices)["family"])

    def backbone(self, choices: Mapping[str, Any]) -> BackboneEntry:
        """The backbone of a choice set."""
        name = choices.get("backbone", self.backbones[0].name)
        return next(e for e in self.backbones if e.name == name)

    def to_graph(self, choices: Mapping[str, Any], features: Sequence[FeatureSpec]) -> NeckGraph:
        """The neck of a choice set.

        Raises:
            GraphError: these choices do not fit together.
        """
        settings = self.settings(choices)
        family = settings.pop("family")
        return zoo.create_graph(family, features, **settings)

    def label(self, choices: Mapping[str, Any]) -> str:
        """For people, e.g. ``"fpn 64ch P3-P5 merge=concat"``: family, width, levels, what is not the default."""
        settings = self.settings(choices)
        family, channels, levels = (settings.pop(k, None) for k in _OWN_KEYS)
        parts = [str(family)]
        if channels is not None:
            parts.append(f"{channels}ch")
        if isinstance(levels, (list, tuple)) and levels:
            parts.append(f"P{levels[0]}-P{levels[-1]}" if len(levels) > 1 else f"P{levels[0]}")
        defaults = _options(str(family))
        parts += [f"{k}={_short(v)}" for k, v in settings.items() if not same(v, defaults.get(k))]
        return " ".join(parts)

    # -- what is asked first ------------------------------------------------------------------------------------

    def enqueued(self) -> list[Enqueued]:
        """The candidates asked before the sampler is.

        Published necks: each family of the space and each of `BASELINES`, at the family's own (paper) settings as
        near as the space has them, all at one middle width so that they differ in design only; then FPN at the
        narrowest and the widest, because scaling the width is what one can do without a search, and that line is
        what a searched front has to beat. Of a suite all that is listed, once a seed.
        """
        if self.listed:
            return [
                Enqueued(choices, "listed", False, repeat)
                for repeat in range(self.seeds)  # all candidates once before any of them twice
                for choices in self.enumerate()
            ]
        if self._enqueue == "none":
            return []
        if isinstance(self._enqueue, list):
            return [Enqueued(dict(c), "enqueued", self.contains(c)) for c in self._enqueue]
        width = self.dimensions.get("channels")
        middle = width.middle() if width else None
        wanted = [(family, middle) for family in dict.fromkeys([*BASELINES, *self.families])]
        if width is not None:
            ends = (
                [width.low, width.high] if isinstance(width, RangeDimension) else sorted(width.enumerate(), key=order)
            )
            wanted += [("fpn", ends[0]), ("fpn", ends[-1])]
        found: list[Choices] = []
        for entry in self.backbones:
            for family, channels in wanted:
                choices = self._published(family, channels, entry.name)
                if choices not in found:
                    found.append(choices)
        return [Enqueued(c, "published", self.contains(c)) for c in found]

    def _published(self, family: str, channels: Any, backbone: str) -> Choices:
        choices: Choices = {} if self.constants.get("family") == family else {"family": family}
        defaults = _options(family)
        for key, dimension in self.dimensions.items():
            if key == "backbone":
                choices[key] = backbone
            elif key == "channels":
                choices[key] = channels
            elif key != "family" and self.is_asked(key, choices):
                choices[key] = dimension.nearest(defaults.get(key))
        return choices

    # -- checks and identity ------------------------------------------------------------------------------------

    def check(self, features: Sequence[FeatureSpec] | None = None) -> None:
        """Make sure that necks can be built: some choice set, and each listed value in some choice set.

        Args:
            features: of the backbone; without them the levels of the first backbone at made-up widths.

        Raises:
            SpaceError: every choice set (a sample of a large space), or every one with some value, is inconsistent;
                says why.
        """
        specs = features or [FeatureSpec(k, 2 ** (k + 2), 2**k) for k in self.backbones[0].levels]
        for i, choices in enumerate(self._necks):
            # One for a certain backbone need not fit the others.
            problem = None if "backbone" in choices else self._never_built([choices], specs)
            if problem is not None:
                raise SpaceError(f"{self.source}: necks[{i}]: cannot be built: {problem}")
        if self.listed:
            return
        problem = self._never_built(self.some(_CHECKED_AT_MOST), specs)
        if problem is not None:
            raise SpaceError(f"{self.source}: neck: no choice set can be built; the last: {problem}")
        for key, dimension in self.dimensions.items():
            if isinstance(dimension, ChoiceDimension):
                for i, value in enumerate(dimension.values):
                    problem = self._never_built(self._with_value(key, value), specs)
                    if problem is not None:
                        raise SpaceError(f"{self.source}: neck.{key}.choices[{i}]: cannot be built: {problem}")
            elif isinstance(dimension, FreeDimension):
                problem = self._never_built(self._with_value(key, dimension.middle()), specs)
                if problem is not None:
                    raise SpaceError(f"{self.source}: neck.{key}: cannot be built: {problem}")

    def _never_built(self, tried: Iterable[Choices], features: Sequence[FeatureSpec]) -> str | None:
        """None as soon as one can be built, else why the last cannot."""
        problem = None
        for choices in tried:
            try:
                self.to_graph(choices, features)
            except InputError as error:
                problem = f"{self.label(choices)}: {error}"
            else:
                return None
        return problem

    def _with_value(self, key: str, value: Any) -> Iterator[Choices]:
        rng = random.Random(0)
        drawn = (self._completed({key: value}, rng) for _ in range(_CHECKED_AT_MOST))
        return (choices for choices in drawn if key in choices)

    def some(self, count: int) -> Iterator[Choices]:
        """Every choice set of a space of at most ``count``, else ``count`` sampled ones (always the same)."""
        if self.size is not None and self.size <= count:
            return self.enumerate()
        rng = random.Random(0)
        return (self.sample(rng) for _ in range(count))

    @property
    def predicts_latency(self) -> bool:
        """Whether a bound on latency is held against predictions first."""
        return self.latency.predict and super().predicts_latency

    @property
    def text(self) -> str:
        """The file as written."""
        return self._text if self._text is not None else yaml.safe_dump(self.raw, sort_keys=False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What defines the candidates and their judging; name, budget, sampler and what is enqueued or listed may
        change later."""
        return {
            # The default left out: studies from before there were adapters can be gone on with.
            "backbone": [
                {k: v for k, v in e.model_dump(mode="json").items() if (k, v) != ("adapter", "simple")}
                for e in self.backbones
            ],
            "image_size": list(self.image_size),
            "head": self.head.model_dump(mode="json"),
            "neck": {
                k: d.identity if isinstance(d := self.dimensions.get(k), FreeDimension) else v
                for k, v in self.raw.get("neck", {}).items()
            },
            "objectives": [[o.name, o.direction] for o in self.objectives],  # in order: values are told in it
            "constraints": [c.text for c in self.constraints],
        }


def list_spaces() -> list[str]:
    """Names of the shipped search spaces."""
    return sorted(_shipped())


def list_suites() -> list[str]:
    """Names of the shipped suites: spaces whose candidates are listed."""
    return sorted(_shipped("suites"))


# --------------------------------------------------------------------------------------------------------------
# Small things


_Model = TypeVar("_Model", bound=BaseModel)


def _shipped(below: str = "") -> dict[str, Path]:
    """Name -> file. In a wheel the files lie inside the package, in a source checkout beside it."""
    inside = Path(str(resources.files(fpn_bench))) / "search_spaces"
    folder = inside if inside.is_dir() else inside.parent.parent / "search_spaces"
    return {p.stem: p for p in sorted((folder / below).glob("*.yaml"))}


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads ``1e-3`` as the number it is (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} came twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {error.problem}"
    return f"cannot be read: {error}"


def _problem(model: type[BaseModel], raw: Any, problem: Any, path: str) -> str:
    """One of pydantic's findings as a path in the file and what is wanted there."""
    where, models = path, [model]
    for part in problem["loc"]:
        if isinstance(raw, Mapping) and part in raw:
            where = f"{where}.{part}" if where else str(part)
            raw = raw[part]
        elif isinstance(raw, (list, tuple)) and isinstance(part, int) and part < len(raw):
            where, raw = f"{where}[{part}]", raw[part]
        elif problem["type"] == "missing" and part == problem["loc"][-1]:
            where = f"{where}.{part}" if where else str(part)
        else:  # the tag of a union, which is not in the file
            models = [m for m in models if _tag(m) in (None, part)]
            continue
        if part != problem["loc"][-1]:
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [m for f in fields for m in _models_in(f.annotation)] or models
    if problem["type"] == "extra_forbidden":
        parent, _, key = where.rpartition(".")
        known = {name for m in models for name in m.model_fields}
        unknown = UnknownNameError("key", key, known)
        return f"{parent}: {unknown}" if parent else str(unknown)
    if problem["type"] == "missing":
        return f"{where}: nothing came; this key is wanted"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message} ({_short(problem['input'])} came)"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, Annotated):
        return [m for a in get_args(annotation) for m in _models_in(a)]
    return []


def _tag(model: type[BaseModel]) -> Any:
    kind = model.model_fields.get("kind")
    values = get_args(kind.annotation) if kind is not None else ()
    return values[0] if len(values) == 1 else None


def _conditions(when: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """``{family: fpn}`` and ``{family: [fpn, pafpn]}`` alike; a list may also be the value itself."""
    return {k: (v, *v) if isinstance(v, list) else (v,) for k, v in when.items()}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind_of(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
