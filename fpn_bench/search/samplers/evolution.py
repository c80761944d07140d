"""Evolution on genomes: parents from the best so far, one value changed or two parents crossed, never a repeat.

Non-dominated sorting and crowding as in Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm:
NSGA-II", over all that was assessed so far in place of generations, so that it waits for nobody; one change a child as
in Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search". A genome of a free space changes
by one gene, and is crossed gene by gene by its space.
"""

from __future__ import annotations

import itertools

from fpn_bench.analysis.pareto import best_first
from fpn_bench.search.records import History
from fpn_bench.search.samplers.base import ProposingSampler, SamplerContext, crossover, objective_rows
from fpn_bench.search.space import Choices, ChoiceSpace

_TRIED = 200
"""Children an ask before chance takes over; of a small space nearly all may be taken."""


class EvolutionSampler(ProposingSampler):
    """See the module.

    Args:
        space, context, seed: see `ProposingSampler`.
        population: parents are chosen among so many of the best; as many random proposals come first.
        crossing: share of children of two parents; the others are one parent's, with one change.
    """

    def __init__(
        self,
        space: ChoiceSpace,
        context: SamplerContext,
        *,
        seed: int,
        population: int = 20,
        crossing: float = 0.5,
    ) -> None:
        super().__init__(space, context, seed=seed)
        self._population = population
        self._crossing = crossing

    def propose(self, history: History) -> Choices | None:
        enough = len(history.observed) + len(history.pending) >= self._population
        parents = self._parents(history) if enough else []
        for _ in range(_TRIED if parents else 0):
            child = self._child(parents)
            if self.open_facts(child, history.taken) is not None:
                return child
        drawn = (self.space.sample(self.rng) for _ in range(_TRIED))
        return next((choices for choices in drawn if self.open_facts(choices, history.taken) is not None), None)

    def _parents(self, history: History) -> list[Choices]:
        """The best of the space, best first."""
        rows = objective_rows(self.space, history.observed)
        best = best_first(rows, [o.direction for o in self.space.objectives])
        inside = (o.choices for o in map(history.observed.__getitem__, best) if self.space.contains(o.choices))
        return list(itertools.islice(inside, self._population))

    def _child(self, parents: list[Choices]) -> Choices:
        child = self._parent(parents)
        if self.rng.random() < self._crossing:
            child = crossover(self.space, child, self._parent(parents), self.rng)
            if child not in parents:
                return child
        return next(self.space.neighbours(child, self.rng), child)

    def _parent(self, parents: list[Choices]) -> Choices:
        """The better of two."""
        return parents[min(self.rng.randrange(len(parents)) for _ in range(2))]
