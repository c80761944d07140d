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

import functools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Self

import fpn_bench
from fpn_bench import zoo
from fpn_bench.errors import InputError, SpaceError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.search.space.choices import ChoiceSpace, Enqueued, SamplerConfig
from fpn_bench.search.space.dimensions import (
    ChoiceDimension,
    Choices,
    Dimension,
    FreeDimension,
    RangeDimension,
    order,
    same,
)
from fpn_bench.search.space.messages import plain, short
from fpn_bench.search.space.reader import OWN_KEYS, SpaceReader
from fpn_bench.search.space.schema import BackboneEntry
from fpn_bench.training.protocol import recorded_recipe
from fpn_bench.yaml_text import dump_yaml, load_yaml

BASELINES = ("fpn", "pafpn", "channel_mapper", "top_only")
"""Published necks every front is read against, whether or not the space searches their family."""
_TRIED = 256
"""Choice sets that are tried before a value counts as impossible."""
_options = functools.cache(zoo.options)


class Space(ChoiceSpace):
    """A search space: what may be chosen, and what the choices are judged by.

    Make one with `Space.load` or `Space.from_dict`.
    """

    def __init__(self, raw: Mapping[str, Any], *, source: str = "space", text: str | None = None) -> None:
        """See `from_dict`; ``source`` opens the error messages, ``text`` is the file as written."""
        self.raw = dict(raw)
        self._text = text
        read = SpaceReader(self.raw, source)
        file = read.file
        self.backbones = tuple(file.backbone)
        self.data = file.data
        self.image_size = file.image_size
        self.head = file.head
        self.training = file.training
        self.latency = file.latency
        self.families = read.families
        self.seeds = file.seeds or 1
        self._necks = tuple(file.necks or ())
        self._enqueue = file.enqueue
        super().__init__(
            read.dimensions,
            read.objectives,
            constraints=read.constraints,
            sampler=SamplerConfig(kind="random") if read.listed else file.sampler,
            budget=file.budget,
            rungs=file.rungs,
            full_epochs=file.training.epochs,
            constants=read.constants,
            name=file.name,
            source=source,
            listed=read.listed,
        )
        if self.listed:
            self.budget = file.budget.model_copy(update={"trials": len(list(self.enumerate())) * self.seeds})

    @classmethod
    def load(cls, path_or_name: str | Path) -> Self:
        """A space from a YAML file, or a shipped one by its name (`list_spaces`, `list_suites`).

        Raises:
            SpaceError: the file is missing, is no YAML, or says something a space cannot say.
            FormatVersionError: it was written for a newer fpn_bench.
        """
        path = Path(path_or_name)
        if not path.is_file():
            shipped = {**shipped_files("suites"), **shipped_files()}
            name = str(path_or_name)
            if name not in shipped:
                if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
                    raise SpaceError(f"search space {name} does not exist; shipped ones: {', '.join(sorted(shipped))}")
                raise UnknownNameError("search space", name, shipped, hint="fpn-bench spaces")
            path = shipped[name]
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise SpaceError(f"{path}: cannot be read: {error}") from error
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "space") -> Self:
        """A space from the text of a YAML file; ``source`` opens error messages. Raises as `load` does."""
        raw = load_yaml(text, source, error=SpaceError)
        if not isinstance(raw, dict):
            got = "nothing" if raw is None else f"a {type(raw).__name__}"
            raise SpaceError(f"{source}: expected a mapping of keys (name:, backbone:, neck: ...), got {got}")
        return cls(raw, source=source, text=text)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """A space from the content of a YAML file. Raises as `load` does."""
        return cls(raw)

    def replace(self, **changes: Any) -> Self:
        """A copy with top-level keys of the file replaced, e.g. ``space.replace(data={"kind": "coco", ...})``."""
        return type(self)({**self.raw, **changes}, source=self.source)

    def with_recorded_recipe(self, recorded: Mapping[str, Any]) -> Self:
        """The space, with what its ``training:`` leaves out as a study recorded it (``protocol["training"]``).

        A study keeps its recipe when a later release has other defaults.
        """
        given = self.raw.get("training") or {}
        recipe = {**recorded_recipe(recorded).model_dump(mode="json"), **given}
        filled = self.replace(training=recipe)
        return self if filled.training == self.training else filled

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
        if key not in (*OWN_KEYS, "backbone"):
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
        known = {*OWN_KEYS, *_options(str(family))}
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
        family, channels, levels = (settings.pop(k, None) for k in OWN_KEYS)
        parts = [str(family)]
        if channels is not None:
            parts.append(f"{channels}ch")
        if isinstance(levels, (list, tuple)) and levels:
            parts.append(f"P{levels[0]}-P{levels[-1]}" if len(levels) > 1 else f"P{levels[0]}")
        defaults = _options(str(family))
        parts += [f"{k}={short(v)}" for k, v in settings.items() if not same(v, defaults.get(k))]
        return " ".join(parts)

    # -- what is asked first ------------------------------------------------------------------------------------

    def enqueued(self) -> list[Enqueued]:
        """The candidates asked before the sampler is.

        Published necks: each family of the space and each of `BASELINES`, at the family's own (paper) settings as
        near as the space has them, all at one middle width and with one norm layer so that they differ in design
        only: to beat them cannot mean to have norm layers; then FPN at the
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
                wanted = _norm(dimension) if key == "norm" else None
                choices[key] = dimension.nearest(defaults.get(key) if wanted is None else wanted)
        return choices

    # -- checks and identity ------------------------------------------------------------------------------------

    def check(self, features: Sequence[FeatureSpec] | None = None) -> None:
        """Make sure that necks can be built: some choice set, and each listed value and end of a range in some.

        Args:
            features: of the backbone; without them the levels of the first backbone at made-up widths.

        Raises:
            SpaceError: every choice set (a sample of a large space), or every one with some value, is inconsistent;
                says why.
        """
        features = features or [FeatureSpec(k, 2 ** (k + 2), 2**k) for k in self.backbones[0].levels]
        if self.listed:
            for i, choices in enumerate(self._necks):
                if "backbone" not in choices:  # one for a certain backbone need not fit the others
                    self._check_some(f"necks[{i}]: cannot be built: ", [choices], features)
            return
        rng = random.Random(0)
        is_small = self.size is not None and self.size <= _TRIED
        tried = self.enumerate() if is_small else (self.sample(rng) for _ in range(_TRIED))
        self._check_some("neck: no choice set can be built; the last: ", tried, features)
        for key, dimension in self.dimensions.items():
            for where, value in _values_to_try(dimension).items():
                rng = random.Random(0)
                drawn = (self.completed({key: value}, rng) for _ in range(_TRIED))
                tried = (choices for choices in drawn if key in choices)
                self._check_some(f"neck.{key}{where}: cannot be built: ", tried, features)

    def _check_some(self, problem: str, tried: Iterable[Choices], features: Sequence[FeatureSpec]) -> None:
        """Refuse choice sets none of which can be built, saying why the last cannot."""
        why = None
        for choices in tried:
            try:
                self.to_graph(choices, features)
            except InputError as error:
                why = f"{self.label(choices)}: {error}"
            else:
                return
        if why is not None:
            raise SpaceError(f"{self.source}: {problem}{why}")

    @property
    def predicts_latency(self) -> bool:
        """Whether a bound on latency is held against predictions first."""
        return self.latency.predict and super().predicts_latency

    @property
    def text(self) -> str:
        """The file as written."""
        return self._text if self._text is not None else dump_yaml(plain(self.raw, self.source))

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


def _norm(dimension: Dimension) -> Any:
    """The norm layer of published necks where several are searched; None where none is."""
    values = dimension.values if isinstance(dimension, ChoiceDimension) else ()
    layers = [value for value in values if value not in (None, "none")]
    return "group" if "group" in layers else next(iter(layers), None)  # batch norm's statistics lag in short trainings


def _values_to_try(dimension: Dimension) -> dict[str, Any]:
    """Where it stands in the file -> a value that some neck should have."""
    if isinstance(dimension, ChoiceDimension):
        return {f".choices[{i}]": value for i, value in enumerate(dimension.values)}
    if isinstance(dimension, FreeDimension):
        return {"": dimension.middle()}
    return {".range[0]": dimension.low, ".range[1]": dimension.high}


def list_spaces() -> list[str]:
    """Names of the shipped search spaces."""
    return sorted(shipped_files())


def list_suites() -> list[str]:
    """Names of the shipped suites: spaces whose candidates are listed."""
    return sorted(shipped_files("suites"))


def shipped_files(below: str = "") -> dict[str, Path]:
    """Name -> file. In a wheel the files lie inside the package, in a source checkout beside it."""
    inside = Path(str(resources.files(fpn_bench))) / "search_spaces"
    folder = inside if inside.is_dir() else inside.parent.parent / "search_spaces"
    return {p.stem: p for p in sorted((folder / below).glob("*.yaml"))}
