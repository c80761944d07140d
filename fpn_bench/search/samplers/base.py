"""What our own samplers share: they propose whole choice sets of a space."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.space import Choices, ChoiceSpace, Dimension, FreeDimension

Floats = npt.NDArray[np.float64]


class SamplerContext(Protocol):
    """What a sampler of our own is told of a search."""

    def look_up(self, choices: Choices) -> Facts | None:
        """What is known of a choice set before training; None where it cannot be built. Asked again and again."""

    def history(self) -> History:
        """The search so far; asked once a proposal."""


@dataclass(frozen=True)
class SamplerSetup:
    """What a sampler is made of.

    Attributes:
        space: what is searched; its `sampler` block says how.
        trials: the budget, from which unset sizes are derived.
        seed: of the proposals.
        context: what a sampler of our own is told; None where Optuna's study is all there is.
        alone: no other worker proposes at the same time.
    """

    space: ChoiceSpace
    trials: int
    seed: int
    context: SamplerContext | None = None
    alone: bool = True

    @property
    def startup_trials(self) -> int:
        """Random trials before a model takes over."""
        return self.space.sampler.startup_trials or min(max(self.trials // 3, 4), 10)

    @property
    def population(self) -> int:
        """Of an evolution."""
        return self.space.sampler.population or min(max(self.trials // 5, 4), 50)

    @property
    def given_context(self) -> SamplerContext:
        """The context, which samplers of our own cannot do without."""
        if self.context is None:
            raise TypeError(f"sampler {self.space.sampler.kind!r} expects a context, got none")
        return self.context


class ProposingSampler(ABC):
    """Proposes whole choice sets of a space.

    Args:
        space: what is searched.
        context: what is known of choice sets, and of the search so far.
        seed: of the proposals.
    """

    def __init__(self, space: ChoiceSpace, context: SamplerContext, *, seed: int) -> None:
        self.space = space
        self.context = context
        self.rng = random.Random(seed)

    @abstractmethod
    def propose(self, history: History) -> Choices | None:
        """The choice set to assess next; None when none is left, and a random draw stands for it."""

    def open_facts(self, choices: Choices, taken: AbstractSet[str]) -> Facts | None:
        """What is known of a choice set that may be proposed; None of one that may not."""
        facts = self.context.look_up(choices)
        if facts is None or facts.id in taken:
            return None
        bounds = (c for c in self.space.constraints if c.name in facts.costs)
        return None if any(c.violation(facts.costs[c.name]) > 0 for c in bounds) else facts


def crossover(space: ChoiceSpace, one: Mapping[str, Any], other: Mapping[str, Any], rng: random.Random) -> Choices:
    """A choice set with each key from either parent; genomes of a free space are crossed gene by gene.

    A key that neither parent was asked is drawn.
    """

    def inherited(dimension: Dimension) -> Any:
        key = dimension.key
        carried = [p[key] for p in (one, other) if key in p and dimension.contains(p[key])]
        if isinstance(dimension, FreeDimension) and len(carried) == 2:
            a, b = (dimension.space.parse(text) for text in carried)
            return dimension.space.text(dimension.space.crossover(a, b, rng))
        return rng.choice(carried) if carried else dimension.sample(rng)

    return space.answered(inherited)


def objective_rows(space: ChoiceSpace, observed: Sequence[Observed]) -> Floats:
    """(observed, objectives) of floats, NaN where a cost is not known."""
    learned = space.learned
    sign = 1.0 if learned is None or learned.maximize else -1.0
    rows = [
        [sign * o.ap if wanted == learned else o.facts.costs.get(wanted.name, np.nan) for wanted in space.objectives]
        for o in observed
    ]
    return np.array(rows, dtype=np.float64).reshape(len(observed), len(space.objectives))
