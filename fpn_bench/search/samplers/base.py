"""What our own samplers share: they propose whole choice sets, and serve as Optuna's samplers too."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.samplers.parameters import encode
from fpn_bench.search.space import Choices, ChoiceSpace, FreeDimension

Floats = npt.NDArray[np.float64]

LEARNED = "ap"
"""The one objective that is not known before training."""


class SamplerContext(Protocol):
    """What a sampler of our own is told of a search."""

    def look_up(self, choices: Choices) -> Facts | None:
        """What is known of a choice set before training; None where it cannot be built. Asked again and again."""

    def history(self) -> History:
        """The search so far; asked once a proposal."""


class ProposingSampler(BaseSampler):
    """Proposes whole choice sets of a space: `propose` says which, and Optuna may ask parameter by parameter.

    Parameters are sampled independently as far as Optuna can see: with the first that a trial asks the whole choice set
    is proposed. A trial whose parameters were given asks none, so nothing is proposed for it.

    Args:
        space: what is searched.
        look_up: what is known of a choice set before training; None where it cannot be built. Asked again and again:
            cache it.
        history: the search so far; asked once a proposal.
        seed: of the proposals.
    """

    def __init__(
        self,
        space: ChoiceSpace,
        look_up: Callable[[Choices], Facts | None],
        history: Callable[[], History],
        *,
        seed: int,
    ) -> None:
        """See the class."""
        self.space = space
        self.look_up = look_up
        self.history = history
        self.rng = random.Random(seed)
        self._fallback = RandomSampler(seed=seed)
        self._proposed: tuple[int, Mapping[str, Any]] = (-1, {})

    @abstractmethod
    def propose(self, history: History) -> Choices | None:
        """The choice set to assess next; None when none is left, and a random draw stands for it."""

    def open_facts(self, choices: Choices, taken: AbstractSet[str]) -> Facts | None:
        """What is known of a choice set that may be proposed; None of one that may not."""
        facts = self.look_up(choices)
        return facts if facts is not None and facts.id not in taken and self.keeps_bounds(facts.costs) else None

    def keeps_bounds(self, costs: Mapping[str, float]) -> bool:
        """Whether no constraint is known to be broken."""
        return not any(c.violation(costs[c.name]) > 0 for c in self.space.constraints if c.name in costs)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: see the class."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None: see the class."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The parameter of the trial's proposal; at random where that has none of the name."""
        number, params = self._proposed
        if number != trial.number:
            chosen = self.propose(self.history())
            params = encode(self.space, self.space.sample(self.rng) if chosen is None else chosen)
            self._proposed = trial.number, params
        if param_name in params:
            return params[param_name]
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """See `optuna.samplers.BaseSampler`."""
        self.rng.seed()
        self._fallback.reseed_rng()


def crossover(space: ChoiceSpace, one: Mapping[str, Any], other: Mapping[str, Any], rng: random.Random) -> Choices:
    """A choice set with each key from either parent; genomes of a free space are crossed gene by gene.

    A key that neither parent was asked is drawn.
    """
    child: Choices = {}
    for key, dimension in space.dimensions.items():
        if not space.is_asked(key, child):
            continue
        carried = [p[key] for p in (one, other) if key in p and dimension.contains(p[key])]
        if isinstance(dimension, FreeDimension) and len(carried) == 2:
            a, b = (dimension.space.parse(text) for text in carried)
            child[key] = dimension.space.text(dimension.space.crossover(a, b, rng))
        else:
            child[key] = rng.choice(carried) if carried else dimension.sample(rng)
    return child


def objective_rows(space: ChoiceSpace, observed: Sequence[Observed]) -> Floats:
    """(observed, objectives) of floats, NaN where a cost is not known."""
    rows = [
        [o.ap if wanted.name == LEARNED else o.facts.costs.get(wanted.name, np.nan) for wanted in space.objectives]
        for o in observed
    ]
    return np.array(rows, dtype=np.float64).reshape(len(observed), len(space.objectives))
