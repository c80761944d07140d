"""From the content of a space file to dimensions, objectives and constraints."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fpn_bench import zoo
from fpn_bench.analysis.rows import Objective, parse_direction
from fpn_bench.errors import FormatVersionError, InputError, SpaceError, UnknownNameError
from fpn_bench.metrics import metric_of, metrics
from fpn_bench.search.space.dimensions import (
    ChoiceDimension,
    Constraint,
    Dimension,
    FreeDimension,
    RangeDimension,
    number_text,
    same,
)
from fpn_bench.search.space.messages import plain, short, validated
from fpn_bench.search.space.schema import (
    BOUNDS,
    FREE,
    FREE_FILES,
    MAX_WHOLE,
    SCHEMA_VERSION,
    ChoicesFile,
    RangeFile,
    space_file,
)

OWN_KEYS = ("family", "channels", "out_levels")
"""Keys under ``neck:`` that every family has."""


class SpaceReader:
    """What a space file says.

    Attributes:
        file: as the schema has it.
        listed: candidates are listed, not searched.
        constants: keys under ``neck:`` with one value.
        dimensions: searched keys, each behind those that its condition reads.
        families: neck families that are searched or listed.
        objectives, constraints: what candidates are judged by.

    Args:
        raw: content of the file.
        source: opens the error messages.

    Raises:
        SpaceError: it says something that a space cannot say.
        FormatVersionError: it was written for a newer fpn_bench.
    """

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.source = source
        version = raw.get("schema_version", SCHEMA_VERSION)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise FormatVersionError(
                f"{source}: expected schema_version up to {SCHEMA_VERSION}, got {version}: "
                "`pip install --upgrade fpn-bench`"
            )
        content = plain(raw, source)
        self.file = validated(space_file(), content, "", source)
        self.listed = self._check_listed(content)
        self.constants: dict[str, Any] = {}
        self.dimensions: dict[str, Dimension] = {}
        self._check_bounds("neck", self.file.neck)
        if isinstance(content["backbone"], list):
            self._read_backbones()
        self.families = self._read_listed() if self.listed else self._read_neck()
        self.objectives = self._read_objectives()
        self.constraints = tuple(self._constraint(i, text) for i, text in enumerate(self.file.constraints))
        for name in ("necks", "enqueue"):
            entries = getattr(self.file, name)
            for i, choices in enumerate(entries if isinstance(entries, list) else ()):
                self._check_choices(f"{name}[{i}]", choices)

    # -- the file as a whole --------------------------------------------------------------------------------------

    def _check_listed(self, content: Mapping[str, Any]) -> bool:
        """Whether candidates are listed; what only a search reads must then be away, and the other way round."""
        listed = self.file.necks is not None
        for key in ("sampler", "rungs", "enqueue") if listed else ("seeds",):
            if key in content:
                why = "`necks:` lists what is trained, nothing is sampled" if listed else "there are no `necks:`"
                raise self._error(key, f"expected nothing, for {why}; got {short(content[key])}; leave it out")
        if listed and self.file.budget.model_fields_set & {"trials", "confirm", "seeds", "until"}:
            raise self._error(
                "budget",
                "expected hours, retries and trial_minutes alone, for `necks:` and `seeds:` say what is trained; "
                f"got {short(content['budget'])}",
            )
        if not listed and "neck" not in content:
            raise self._error("neck", "expected a value, got nothing; give it, or necks:, a list of candidates")
        return listed

    def _read_objectives(self) -> tuple[Objective, ...]:
        wanted = self.file.objectives
        if not wanted:
            raise self._error("objectives", "expected at least one, got none; try {ap: maximise}")
        for name, direction in wanted.items():
            if name not in (known := [metric.name for metric in metrics()]):
                raise self._unknown("objectives", "objective", name, known)
            if parse_direction(direction) != metric_of(name).direction:
                raise self._error(f"objectives.{name}", f"expected {metric_of(name).direction}, got {direction}")
        return tuple(Objective(name, metric_of(name).direction) for name in wanted)

    def _constraint(self, index: int, text: str) -> Constraint:
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*", text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        path = f"constraints[{index}]"
        if match is None or not math.isfinite(bound):
            raise self._error(path, f"expected NAME <= NUMBER, got {short(text)!r}; try 'params <= 5e6'")
        if match[1] not in (known := [metric.name for metric in metrics("static", "measured")]):
            raise self._unknown(path, "constrained quantity", match[1], known)
        return Constraint(f"{match[1]} {match[2]} {number_text(bound)}", match[1], bound, match[2] == "<=")

    # -- backbones and necks --------------------------------------------------------------------------------------

    def _read_backbones(self) -> None:
        """A list of backbones is searched."""
        names = [entry.name for entry in self.file.backbone]
        if len(set(names)) < len(names) or not names:
            raise self._error("backbone", f"expected different names, at least one, got {short(names)}")
        self.dimensions["backbone"] = ChoiceDimension("backbone", tuple(names), {})

    def _read_neck(self) -> tuple[str, ...]:
        """Constants and dimensions of a search; returns its families."""
        neck = self.file.neck
        if "family" not in neck:
            near = difflib.get_close_matches("family", neck, n=1)
            got = f"{near[0]!r}" if near else "nothing"
            necks = ", ".join(zoo.list_necks())
            raise self._error("neck", f"expected `family:`, one or a choice of {necks}; got {got}")
        dimensions = dict(self.dimensions)
        for key, raw in neck.items():
            read = self._read_key(key, raw)
            if isinstance(read, Dimension):
                dimensions[key] = read
            else:
                self.constants[key] = read
        found = dimensions["family"].enumerate() if "family" in dimensions else iter((self.constants["family"],))
        families = tuple(self._family("neck.family", family) for family in found)
        self._check_keys("neck", neck, families)
        self.dimensions = self._in_asking_order(dimensions)
        return families

    def _read_listed(self) -> tuple[str, ...]:
        """Constants of a suite; returns the families that it lists."""
        self.constants = neck = self.file.neck
        found = [self._family_of(f"necks[{i}]", listed) for i, listed in enumerate(self.file.necks or ())]
        families = tuple(dict.fromkeys(found))
        self._check_keys("neck", neck, families)
        for key, value in neck.items():
            if isinstance(value, dict):
                why = "for `necks:` lists what varies"
                raise self._error(f"neck.{key}", f"expected a constant, {why}; got {short(value)}")
        return families

    def _family(self, path: str, family: Any) -> str:
        if not isinstance(family, str) or family not in zoo.list_necks():
            raise self._unknown(path, "neck", str(family), zoo.list_necks(), "fpn-bench necks")
        return family

    def _family_of(self, path: str, choices: Mapping[str, Any]) -> str:
        """The neck family of what a file lists."""
        family = choices.get("family", self.constants.get("family"))
        if family is None:
            raise self._error(path, "expected `family:`, which says which neck it is, got none")
        return self._family(path, family)

    def _check_keys(self, path: str, keys: Iterable[str], families: Iterable[str], *others: str) -> None:
        """Refuse what no family takes."""
        known = {*OWN_KEYS, *others, *itertools.chain.from_iterable(zoo.options(f) for f in families)}
        for key in keys:
            if key not in known:
                raise self._unknown(path, "key", key, known)

    def _check_bounds(self, path: str, values: Mapping[str, Any]) -> None:
        """Refuse whole numbers that no network has: what they would make does not fit into any memory."""

        def check(value: Any, where: str, most: int) -> None:
            if isinstance(value, list):
                for i, item in enumerate(value):
                    check(item, f"{where}[{i}]", most)
            elif isinstance(value, dict):
                for name in ("choices", "range"):
                    check(value.get(name), f"{where}.{name}", most)
            elif isinstance(value, (int, float)) and abs(value) > most:
                raise self._error(where, f"expected a number of at most {most}, got {short(value)}")

        for key, value in values.items():
            check(value, f"{path}.{key}", BOUNDS.get(key, MAX_WHOLE))

    def _check_choices(self, path: str, choices: Mapping[str, Any]) -> None:
        """Check a candidate that is listed or enqueued."""
        self._check_bounds(path, choices)
        family = self._family_of(path, choices)
        self._check_keys(path, choices, [family], *(["backbone"] if "backbone" in self.dimensions else []))
        for key in () if self.listed else ("backbone", "channels", "out_levels"):
            if key in self.dimensions and key not in choices:
                raise self._error(path, f"expected `{key}:`, which a candidate to enqueue says, got none")
        if "backbone" in choices and not self.dimensions["backbone"].contains(choices["backbone"]):
            names = [entry.name for entry in self.file.backbone]
            raise self._unknown(path, "backbone of this space", str(choices["backbone"]), names)

    # -- one key --------------------------------------------------------------------------------------------------

    def _read_key(self, key: str, raw: Any) -> Any:
        """A dimension where the key is searched, else its value."""
        if not isinstance(raw, dict):
            return raw
        path = f"neck.{key}"
        kinds = [k for k in ("choices", "range", "free") if k in raw]
        if len(kinds) > 1:
            got = " and ".join(f"`{k}:`" for k in kinds)
            raise self._error(path, f"expected one of `choices:`, `range:` and `free:`, got {got}")
        match kinds:
            case ["choices"]:
                return self._choices(key, validated(ChoicesFile, raw, path, self.source))
            case ["range"]:
                return self._range(key, validated(RangeFile, raw, path, self.source))
            case ["free"]:
                return self._free(key, raw)
        known = {*ChoicesFile.model_fields, *RangeFile.model_fields, "free"}
        for name in raw:
            if name not in known:
                raise self._unknown(path, "key", name, known)
        raise self._error(path, f"expected a constant, `choices:`, `range:` or `free:`, got {short(raw)}")

    def _choices(self, key: str, file: ChoicesFile) -> ChoiceDimension:
        for i, value in enumerate(file.choices):
            if any(same(value, other) for other in file.choices[:i]):
                raise self._error(f"neck.{key}.choices", f"expected each value once, got {short(value)!r} twice")
        return ChoiceDimension(key, tuple(file.choices), _conditions(file.when))

    def _range(self, key: str, file: RangeFile) -> RangeDimension:
        path = f"neck.{key}"
        low, high = file.range
        whole = all(isinstance(v, int) for v in (low, high, file.step or 1))
        step = file.step if file.step is not None or not whole else 1
        if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
            raise self._error(f"{path}.range", f"expected [low, high] with low < high, got [{low}, {high}]")
        if file.log and (low <= 0 or file.step is not None):
            raise self._error(path, "expected low > 0 and no step in a range with log: true")
        if step is not None:
            if not step > 0:
                raise self._error(f"{path}.step", f"expected a step > 0, got {step}")
            steps = (high - low) / step
            if not math.isfinite(steps) or not math.isclose(steps, round(steps), abs_tol=1e-9):
                end = f"; try {low + math.floor(steps) * step:g} as the end" if math.isfinite(steps) else ""
                raise self._error(path, f"expected steps of {step} from {low} to end on {high}{end}")
        if not whole:
            low, high = float(low), float(high)
        return RangeDimension(key, low, high, step, file.log, _conditions(file.when))

    def _free(self, key: str, raw: Mapping[str, Any]) -> FreeDimension:
        path, word = f"neck.{key}", raw["free"]
        if not isinstance(word, str) or word not in FREE:
            raise self._unknown(f"{path}.free", "free space", str(word), FREE)
        if key != FREE[word].option:
            raise self._error(path, f"expected `free: {word}` under `{FREE[word].option}:`, whose values it makes")
        values = dict(validated(FREE_FILES[word], raw, path, self.source))
        del values["free"]
        when = _conditions(values.pop("when"))
        try:
            return FreeDimension(key, FREE[word](**values), when)
        except InputError as error:
            raise self._error(path, str(error)) from error

    def _in_asking_order(self, dimensions: Mapping[str, Dimension]) -> dict[str, Dimension]:
        """Each key after those its condition reads, `family` as early as can be; the written order else."""
        ordered: dict[str, Dimension] = {}
        waiting = {k: dimensions[k] for k in sorted(dimensions, key=lambda k: k != "family")}
        while waiting:
            ready = next((k for k, d in waiting.items() if not any(w in waiting for w in d.when)), None)
            if ready is None:
                raise SpaceError(f"{self.source}: the `when:` of {', '.join(waiting)} wait for each other")
            ordered[ready] = waiting.pop(ready)
            for other, wanted in ordered[ready].when.items():
                self._check_condition(ready, other, wanted, dimensions)
        return ordered

    def _check_condition(
        self, key: str, other: str, wanted: Sequence[Any], dimensions: Mapping[str, Dimension]
    ) -> None:
        path = f"neck.{key}.when"
        read = dimensions.get(other)
        if isinstance(read, FreeDimension):
            raise self._error(path, f"{other!r} is free; no condition can read it")
        if read is not None:
            holds = any(read.contains(v) for v in wanted)
        elif other in self.constants:
            holds = any(same(v, self.constants[other]) for v in wanted)
        else:
            raise self._unknown(path, "key", other, {*dimensions, *self.constants} - {key})
        if not holds:
            raise self._error(f"{path}.{other}", f"{short(list(wanted))} can never hold")

    # -- errors ---------------------------------------------------------------------------------------------------

    def _error(self, path: str, problem: str) -> SpaceError:
        return SpaceError(f"{self.source}: {path}: {problem}")

    def _unknown(self, path: str, kind: str, name: str, known: Iterable[str], hint: str | None = None) -> SpaceError:
        return self._error(path, str(UnknownNameError(kind, short(name), known, hint)))


def _conditions(when: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """``{family: fpn}`` and ``{family: [fpn, pafpn]}`` alike; a list may also be the value itself."""
    return {k: (v, *v) if isinstance(v, list) else (v,) for k, v in when.items()}
