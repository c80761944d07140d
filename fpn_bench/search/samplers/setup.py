"""What a sampler is made of."""

from __future__ import annotations

from dataclasses import dataclass

from fpn_bench.search.samplers.base import SamplerContext
from fpn_bench.search.space import ChoiceSpace


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
    def told(self) -> SamplerContext:
        """The context, which samplers of our own cannot do without."""
        if self.context is None:
            raise TypeError(f"sampler {self.space.sampler.kind!r} expects a context, got none")
        return self.context
