"""Searched keys with their values and conditions, and the bounds on what is known before training.

A *choice set* (`choices` everywhere) is a plain dict: searched key -> value.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fpn_bench.zoo.free import FreeSpace

Choices = dict[str, Any]
"""Searched key -> value."""

CHEAP_FACTS = ("params", "macs", "neck_params", "neck_macs")
"""Known in milliseconds, without building a tensor."""
COSTS = (*CHEAP_FACTS, "latency_ms")
"""What samplers learn from of any candidate, whatever is searched for."""


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
