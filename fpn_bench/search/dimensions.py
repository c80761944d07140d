"""What may be chosen: searched keys, their values and conditions, and what choices are judged by.

A *choice set* (`choices` everywhere) is a plain dict: searched key -> value. A `ChoiceSpace` is the set of all choice
sets with objectives, constraints and plan; it knows nothing of necks, so that a search runs on any table as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fpn_bench.analysis.rows import Direction, Objective
from fpn_bench.errors import SpaceError
from fpn_bench.search.plan import Budget, Rungs, SamplerConfig
from fpn_bench.zoo.free import FreeSpace

Choices = dict[str, Any]
"""Searched key -> value."""

CHEAP_FACTS = ("params", "macs", "neck_params", "neck_macs")
"""Known in milliseconds, without building a tensor."""
COSTS = (*CHEAP_FACTS, "latency_ms")
"""Known of a candidate before its training: what can be bounded."""
OBJECTIVES: Mapping[str, Direction] = {
    "ap": "maximize",
    "latency_ms": "minimize",
    **dict.fromkeys(CHEAP_FACTS, "minimize"),
}
"""What a candidate can be judged by, with the only direction that makes sense."""


@dataclass(frozen=True)
class Constraint:
    """A hard bound on a fact known before training.

    Attributes:
        text: as written, normalised, e.g. ``"params <= 5000000"``.
        name: the column bounded.
        bound: in the column's unit.
        at_most: ``<=`` when true, else ``>=``.
    """

    text: str
    name: str
    bound: float
    at_most: bool

    def violation(self, value: float) -> float:
        """By how much ``value`` breaks the bound, relative to it: feasible when <= 0.

        Relative, because samplers add the violations of all constraints, and 1,000 params must not outweigh 1 ms.
        """
        excess = value - self.bound if self.at_most else self.bound - value
        return excess / (abs(self.bound) or 1.0)


@dataclass(frozen=True)
class ChoiceDimension:
    """A searched key with listed values.

    Attributes:
        key: its name in a choice set.
        values: in the order written.
        when: key -> values of it under which this key is asked.
    """

    key: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]]

    @property
    def size(self) -> int:
        return len(self.values)

    def contains(self, value: Any) -> bool:
        return any(same(value, v) for v in self.values)

    def enumerate(self) -> Iterator[Any]:
        return iter(self.values)

    def sample(self, rng: random.Random) -> Any:
        return rng.choice(self.values)

    def near(self, value: Any, rng: random.Random) -> list[Any]:
        return [v for v in self.values if not same(v, value)]

    def nearest(self, wanted: Any) -> Any:
        """The value itself, else the nearest number, else the first listed."""
        for value in self.values:
            if same(value, wanted):
                return value
        if is_number(wanted) and all(is_number(v) for v in self.values):
            return min(self.values, key=lambda v: abs(v - wanted))
        return self.values[0]

    def middle(self) -> Any:
        """The middle of the ordered values, the upper one of two."""
        return sorted(self.values, key=order)[len(self.values) // 2]


@dataclass(frozen=True)
class RangeDimension:
    """A searched key with a numeric range.

    Attributes:
        key: its name in a choice set.
        low, high: inclusive ends; whole numbers when both (and the step) were written so.
        step: distance of the values, from ``low``; None is every number between.
        log: sampled evenly in the logarithm.
        when: key -> values of it under which this key is asked.
    """

    key: str
    low: int | float
    high: int | float
    step: int | float | None
    log: bool
    when: Mapping[str, tuple[Any, ...]]

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def size(self) -> float:
        return math.inf if self.step is None else round((self.high - self.low) / self.step) + 1

    def _at(self, index: int) -> int | float:
        assert self.step is not None
        return self.low + index * self.step

    def contains(self, value: Any) -> bool:
        if not is_number(value) or (self.whole and not isinstance(value, int)):
            return False
        if not self.low <= value <= self.high:
            return False
        return self.step is None or math.isclose((value - self.low) / self.step % 1.0, 0.0, abs_tol=1e-9)

    def enumerate(self) -> Iterator[int | float]:
        return (self._at(i) for i in range(int(self.size)))

    def sample(self, rng: random.Random) -> int | float:
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return self.nearest(value)
        return rng.uniform(self.low, self.high) if self.step is None else self._at(rng.randrange(int(self.size)))

    def near(self, value: Any, rng: random.Random) -> list[int | float]:
        if self.step is None:
            span = math.log(self.high / self.low) if self.log else self.high - self.low
            moves = [rng.uniform(-0.1, 0.1) * span for _ in range(2)]
            moved = [value * math.exp(m) if self.log else value + m for m in moves]
            return [min(max(v, self.low), self.high) for v in moved]
        index = round((value - self.low) / self.step)
        return [self._at(i) for i in (index - 1, index + 1) if 0 <= i < self.size]

    def nearest(self, wanted: Any) -> int | float:
        """The value of the range nearest to a number; the low end for anything else."""
        if not is_number(wanted):
            return self.low
        inside: int | float = min(max(wanted, self.low), self.high)
        return inside if self.step is None else self._at(round((inside - self.low) / self.step))

    def middle(self) -> int | float:
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return self.nearest(middle)


@dataclass(frozen=True)
class FreeDimension:
    """A searched key whose values are the texts of a free space's genomes.

    Attributes:
        key: its name in a choice set.
        space: the genomes.
        when: key -> values of it under which this key is asked.
    """

    key: str
    space: FreeSpace[Any]
    when: Mapping[str, tuple[Any, ...]]

    @property
    def size(self) -> int:
        return self.space.size

    def contains(self, value: Any) -> bool:
        return self.space.has(value)

    def enumerate(self) -> Iterator[str]:
        return map(self.space.text, self.space.enumerate())

    def sample(self, rng: random.Random) -> str:
        return self.space.text(self.space.sample(rng))

    def near(self, value: str, rng: random.Random) -> list[str]:
        return [self.space.text(genome) for genome in self.space.neighbours(self.space.parse(value))]

    def nearest(self, wanted: Any) -> str:
        """The value itself, else the published one."""
        return wanted if self.contains(wanted) else self.middle()

    def middle(self) -> str:
        """The published one."""
        return self.space.text(self.space.published)

    @property
    def identity(self) -> dict[str, Any]:
        """What the file says, in one spelling: with the fields that it leaves to their defaults."""
        fields = dataclasses.asdict(self.space)  # type: ignore[call-overload]  # each is one
        listed = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        return {"free": self.space.word, **listed, "when": {k: list(v) for k, v in self.when.items()}}


Dimension = ChoiceDimension | RangeDimension | FreeDimension


@dataclass(frozen=True)
class Enqueued:
    """A candidate asked before the sampler is.

    Attributes:
        choices: its choice set; may hold values (a neck family, say) that the space itself does not search.
        source: ``"published"``, ``"enqueued"`` or ``"listed"``.
        inside: the sampler could have proposed it.
        repeat: its seed is so much above the run's.
    """

    choices: Choices
    source: Literal["published", "enqueued", "listed"]
    inside: bool
    repeat: int = 0


class ChoiceSpace:
    """A set of choice sets, and what they are judged by. Knows nothing of necks.

    Attributes:
        listed: what `enqueued` gives is all there is to try; nothing is sampled.

    Args:
        dimensions: in the order they are asked: each behind those that its condition reads.
        objectives: what is wanted.
        constraints: hard bounds.
        sampler, budget, rungs: how it is searched.
        full_epochs: of a whole training.
        constants: what conditions may read beside choices.
        name: for people.
        source: opens error messages.

    Raises:
        SpaceError: a rung at or beyond the whole training.
    """

    listed = False

    def __init__(
        self,
        dimensions: Mapping[str, Dimension],
        objectives: Sequence[Objective],
        *,
        constraints: Sequence[Constraint] = (),
        sampler: SamplerConfig | None = None,
        budget: Budget | None = None,
        rungs: Rungs | None = None,
        full_epochs: int = 1,
        constants: Mapping[str, Any] | None = None,
        name: str = "space",
        source: str = "space",
    ) -> None:
        """See the class."""
        self.dimensions: Mapping[str, Dimension] = dict(dimensions)
        self.constants: Mapping[str, Any] = dict(constants or {})
        self.objectives = tuple(objectives)
        self.constraints = tuple(constraints)
        self.sampler = sampler or SamplerConfig()
        self.budget = budget or Budget()
        self.rungs = rungs or Rungs()
        self.full_epochs = full_epochs
        self.name = name
        self.source = source
        if self.rungs.epochs and self.rungs.epochs[-1] >= full_epochs:
            raise SpaceError(
                f"{source}: rungs.epochs: {list(self.rungs.epochs)} came; a whole training has {full_epochs} epochs, "
                "each rung is wanted below that"
            )

    # -- the set of choice sets ---------------------------------------------------------------------------------

    def is_asked(self, key: str, choices: Mapping[str, Any]) -> bool:
        """Whether ``key`` is searched, given the choices its condition reads."""
        settings = {**self.constants, **choices}
        when = self.dimensions[key].when
        return all(o in settings and any(same(settings[o], v) for v in values) for o, values in when.items())

    def contains(self, choices: Mapping[str, Any]) -> bool:
        """Whether the sampler could propose this choice set."""
        rest = dict(choices)
        seen: Choices = {}
        for key, dimension in self.dimensions.items():
            if self.is_asked(key, seen):
                if key not in rest or not dimension.contains(rest[key]):
                    return False
                seen[key] = rest.pop(key)
        return not rest

    @cached_property
    def size(self) -> int | None:
        """Number of distinct choice sets; None when a range is continuous."""
        if any(d.size == math.inf for d in self.dimensions.values()):
            return None
        steering = self._steering

        def count(keys: Sequence[str], chosen: Choices) -> int:
            if not keys:
                free = [d for k, d in self.dimensions.items() if k not in steering and self.is_asked(k, chosen)]
                return math.prod(int(d.size) for d in free)
            head, rest = keys[0], keys[1:]
            if not self.is_asked(head, chosen):
                return count(rest, chosen)
            return sum(count(rest, {**chosen, head: value}) for value in self.dimensions[head].enumerate())

        return count([k for k in self.dimensions if k in steering], {})

    @property
    def _steering(self) -> set[str]:
        """Keys that decide which others are asked."""
        return set(itertools.chain.from_iterable(d.when for d in self.dimensions.values()))

    def enumerate(self) -> Iterator[Choices]:
        """Every choice set once, lazily, in a fixed order. Only for a space with a `size`."""

        def walk(keys: Sequence[str], chosen: Choices) -> Iterator[Choices]:
            if not keys:
                yield chosen
            elif not self.is_asked(keys[0], chosen):
                yield from walk(keys[1:], chosen)
            else:
                for value in self.dimensions[keys[0]].enumerate():
                    yield from walk(keys[1:], {**chosen, keys[0]: value})

        if self.size is None:
            raise SpaceError(f"{self.source}: a space with a continuous range cannot be listed; give the range a step")
        return walk(list(self.dimensions), {})

    def sample(self, rng: random.Random) -> Choices:
        """A choice set drawn uniformly, key by key."""
        return self._completed({}, rng)

    def neighbours(self, choices: Mapping[str, Any], rng: random.Random) -> list[Choices]:
        """Choice sets one change away, in random order.

        A listed value changes to any other, a range moves by one step, a genome by one gene. Keys that a change
        brings into play are drawn; keys it puts out of play are dropped.
        """
        found = [
            self._completed({**choices, key: value}, rng)
            for key, dimension in self.dimensions.items()
            if key in choices
            for value in dimension.near(choices[key], rng)
        ]
        rng.shuffle(found)
        return found

    def _completed(self, wanted: Mapping[str, Any], rng: random.Random) -> Choices:
        choices: Choices = {}
        for key, dimension in self.dimensions.items():
            if self.is_asked(key, choices):
                choices[key] = wanted[key] if key in wanted else dimension.sample(rng)
        return choices

    def check(self) -> None:
        """Make sure that candidates can be made of it.

        Raises:
            SpaceError: they cannot.
        """

    # -- what a search needs to know of it ----------------------------------------------------------------------

    def enqueued(self) -> list[Enqueued]:
        """The candidates asked before the sampler is."""
        return []

    def family(self, choices: Mapping[str, Any]) -> str:
        """What kind of candidate this is."""
        return self.name

    def label(self, choices: Mapping[str, Any]) -> str:
        """For people."""
        return " ".join(f"{key}={value}" for key, value in choices.items())

    @property
    def predicts_latency(self) -> bool:
        """Whether a bound on latency is held against predictions first."""
        return any(c.name == "latency_ms" for c in self.constraints)

    @property
    def needs_latency(self) -> bool:
        """Whether an objective or a constraint asks for latency."""
        return "latency_ms" in {o.name for o in self.objectives} | {c.name for c in self.constraints}

    @property
    def identity(self) -> dict[str, Any]:
        """What defines the candidates and their judging."""
        return {
            "dimensions": {key: repr(dimension) for key, dimension in self.dimensions.items()},
            "constants": dict(self.constants),
            "objectives": [[o.name, o.direction] for o in self.objectives],  # in order: values are told in it
            "constraints": [c.text for c in self.constraints],
        }

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits over `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True, default=str).encode()).hexdigest()[:12]

    @property
    def text(self) -> str:
        """For people and for the study: the file as written, where there is one."""
        return json.dumps(self.identity, indent=2, default=str)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.size or 'infinitely many'} choice sets, {self.fingerprint})"


def number_text(value: float) -> str:
    """A number in as many digits as tell it from every other, whole ones without a point."""
    return repr(float(value)).removesuffix(".0")


def choices_key(choices: Mapping[str, Any]) -> str:
    """One spelling of a choice set, for sets and dicts."""
    return json.dumps(choices, sort_keys=True)


def same(a: Any, b: Any) -> bool:
    """Equality that tells True from 1 and takes a tuple for a list."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then everything else by its text."""
    return (False, value, "") if is_number(value) else (True, 0.0, str(value))
