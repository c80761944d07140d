"""The set of all choice sets, with what they are judged by and how it is searched.

It knows nothing of necks, so that a search runs on any table as well; `fpn_bench.search.Space` adds the necks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from fpn_bench.analysis.rows import Objective, merit_first
from fpn_bench.errors import SpaceError
from fpn_bench.metrics import metric_of
from fpn_bench.search.space.dimensions import Choices, Constraint, Dimension, RangeDimension, same
from fpn_bench.search.space.messages import Strict, expected

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


def _registered(names: Callable[[], Iterable[str]]) -> BeforeValidator:
    """Holds a value against the names of a registry, as they are when it is validated."""

    def check(value: Any) -> Any:
        known = list(names())
        if value not in known:
            raise expected(", ".join(f"'{name}'" for name in known[:-1]) + f" or '{known[-1]}'")
        return value

    return BeforeValidator(check)


def _samplers() -> Iterable[str]:
    from fpn_bench.search.samplers import SAMPLERS  # above this module

    return SAMPLERS


def _rules() -> Iterable[str]:
    from fpn_bench.search.rungs import RULES  # above this module

    return RULES


class SamplerConfig(Strict):
    """What proposes candidates.

    Attributes:
        kind: a name in `fpn_bench.search.samplers.SAMPLERS`: ``"known_cost"`` (our own: models AP alone, knows the
            costs), multivariate ``"tpe"``, ``"nsga2"``, ``"nsga3"``, ``"gp"`` (Optuna's), ``"evolution"`` (on
            genomes), ``"random"``, ``"brute_force"``.
        seed: of the proposals; the training has its own.
        startup_trials: random trials before a model takes over; None is the sampler's own rule.
        population: of NSGA-II, NSGA-III and evolution; None is a fifth of the budget, 4 to 50.
    """

    kind: Annotated[str, _registered(_samplers)] = "known_cost"
    seed: int = 0
    startup_trials: PositiveInt | None = None
    population: Annotated[int, Field(ge=2)] | None = None


class Budget(Strict):
    """When to stop, and what the money is for.

    Attributes:
        trials: candidates paid for, in units of a whole training: one that a rung stopped after a quarter of its
            epochs counts a quarter. Timed alone it counts as its first rung. Repeats, results of other studies,
            those rejected on params or MACs and those that cannot be built are free.
        hours: of wall time of one run; None is no bound.
        until: ``"hypervolume-plateau"`` also stops when the front has hardly grown over `patience` of the budget.
        patience: share of `trials` over which a plateau must last.
        confirm: share of what is spent that goes into further seeds of front members whose rank is not certain.
        seeds: most trainings of one candidate.
        retries: how often a candidate is tried again whose trial ended by no fault of its own.
        trial_minutes: a trial of which one step (its latency, its training to the next rung) takes longer is ended and
            failed; None is no bound.
    """

    trials: PositiveInt = 16
    hours: PositiveFloat | None = None
    until: Literal["hypervolume-plateau"] | None = None
    patience: Annotated[float, Field(gt=0, le=1)] = 0.25
    confirm: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seeds: Annotated[int, Field(ge=1)] = 5
    retries: Annotated[int, Field(ge=0)] = 3
    trial_minutes: PositiveFloat | None = None


class Rungs(Strict):
    """Training stops after so many epochs, and goes on where it is worth it.

    Attributes:
        epochs: ascending, each below the protocol's; none trains every candidate to the end.
        rule: which of the stopped ones go on, a name in `fpn_bench.search.rungs.RULES`.
        keep: share of a rung's candidates that go on.
    """

    epochs: tuple[PositiveInt, ...] = ()
    rule: Annotated[str, _registered(_rules)] = "reach"
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @field_validator("epochs")
    @classmethod
    def _ascending(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if list(epochs) != sorted(set(epochs)):
            raise ValueError(f"expected ascending epochs, each once, e.g. [1, 2, 4], got {list(epochs)}")
        return epochs


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


@dataclass(eq=False, repr=False)
class ChoiceSpace:
    """A set of choice sets, and what they are judged by. Knows nothing of necks.

    Attributes:
        dimensions: in the order they are asked: each behind those that its condition reads.
        objectives: what is optimised.
        constraints: hard bounds.
        sampler, budget, rungs: how it is searched.
        full_epochs: of a whole training.
        constants: what conditions may read beside choices.
        name: for people.
        source: opens error messages.
        listed: what `enqueued` gives is all there is to try; nothing is sampled.

    Raises:
        SpaceError: a rung at or beyond the whole training, or where something else than AP is trained for.
    """

    dimensions: Mapping[str, Dimension]
    objectives: Sequence[Objective]
    _: KW_ONLY
    constraints: Sequence[Constraint] = ()
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    budget: Budget = field(default_factory=Budget)
    rungs: Rungs = field(default_factory=Rungs)
    full_epochs: int = 1
    constants: Mapping[str, Any] = field(default_factory=dict)
    name: str = "space"
    source: str = "space"
    listed: bool = False

    def __post_init__(self) -> None:
        """Check the rungs."""
        if self.rungs.epochs and self.rungs.epochs[-1] >= self.full_epochs:
            raise SpaceError(
                f"{self.source}: rungs.epochs: expected epochs below the {self.full_epochs} of a whole training, "
                f"got {list(self.rungs.epochs)}"
            )
        trained = [o.name for o in self.objectives if metric_of(o.name).known == "trained"]
        if self.rungs.epochs and trained not in ([], ["ap"]):
            raise SpaceError(
                f"{self.source}: rungs: expected ap as the one trained objective, for trainings are stopped by their "
                f"curve of AP, got {', '.join(trained)}; leave rungs out"
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

        def count(keys: Sequence[str], chosen: Choices) -> int:
            if not keys:
                return 1
            head, rest = keys[0], keys[1:]
            if not self.is_asked(head, chosen):
                return count(rest, chosen)
            return sum(times * count(rest, {**chosen, head: value}) for value, times in self._distinct_values(head))

        return count(list(self.dimensions), {})

    def _distinct_values(self, key: str) -> Iterator[tuple[Any, int]]:
        """Values of a key that conditions tell apart, and how many values each stands for."""
        dimension = self.dimensions[key]
        if key not in self._steering:
            yield None, int(dimension.size)
        elif not isinstance(dimension, RangeDimension):
            yield from ((value, 1) for value in dimension.enumerate())
        else:
            conditions = itertools.chain.from_iterable(d.when.get(key, ()) for d in self.dimensions.values())
            read = {dimension.nearest(value) for value in conditions if dimension.contains(value)}
            yield from ((value, 1) for value in read)
            other = next((value for value in dimension.enumerate() if value not in read), None)
            if other is not None:
                yield other, int(dimension.size) - len(read)

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
        return self.completed({}, rng)

    def neighbours(self, choices: Mapping[str, Any], rng: random.Random) -> Iterator[Choices]:
        """Choice sets one change away, in random order, each made when it is asked for.

        A listed value changes to any other, a range moves by one step, a genome by one gene. Keys that a change
        brings into play are drawn; keys it puts out of play are dropped.
        """
        changes = [
            (key, value)
            for key, dimension in self.dimensions.items()
            if key in choices
            for value in dimension.near(choices[key], rng)
        ]
        rng.shuffle(changes)
        return (self.completed({**choices, key: value}, rng) for key, value in changes)

    def completed(self, wanted: Mapping[str, Any], rng: random.Random) -> Choices:
        """A choice set with the wanted values, where their keys are asked; the rest is drawn."""
        return self.answered(lambda d: wanted[d.key] if d.key in wanted else d.sample(rng))

    def answered(self, answer: Callable[[Dimension], Any]) -> Choices:
        """A choice set key by key: each that is asked, given those before it, has the value that ``answer`` gives."""
        choices: Choices = {}
        for key, dimension in self.dimensions.items():
            if self.is_asked(key, choices):
                choices[key] = answer(dimension)
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
    def judged_by(self) -> tuple[str, ...]:
        """The metrics that objectives and constraints name."""
        return tuple(dict.fromkeys([*(o.name for o in self.objectives), *(c.name for c in self.constraints)]))

    @property
    def measured(self) -> tuple[str, ...]:
        """Those of them that are measured on the device."""
        return tuple(name for name in self.judged_by if metric_of(name).known == "measured")

    @cached_property
    def learned(self) -> Objective | None:
        """The objective that samplers learn and seeds repeat: AP, or the first that is trained; None without any."""
        trained = (o for o in merit_first(self.objectives) if metric_of(o.name).known == "trained")
        return next(trained, None)

    @cached_property
    def costs(self) -> tuple[Objective, ...]:
        """The other objectives."""
        return tuple(o for o in self.objectives if o != self.learned)

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
