"""What our own samplers share: what they are told of a search, and how a choice set becomes Optuna's parameters."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from fpn_bench.search.parameters import distributions, encode
from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.space import Choices, ChoiceSpace, FreeDimension

Floats = npt.NDArray[np.float64]

LEARNED = "ap"
"""The one objective that is not known before training."""


class ProposingSampler(BaseSampler):
    """An Optuna sampler that proposes whole choice sets of a space; what it proposes, `propose` says.

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
        self._distributions = {k: v for d in space.dimensions.values() for k, v in distributions(d).items()}

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
        """The parameters of every key, conditional ones too; none where the trial's are given."""
        return {} if "fixed_params" in trial.system_attrs else dict(self._distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the proposal: only those of keys that are asked."""
        chosen = self.propose(self.history())
        return encode(self.space, self.space.sample(self.rng) if chosen is None else chosen)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random: nothing is asked that was not proposed."""
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
