"""The known-cost sampler: of the objectives only AP must be learned.

Params, MACs and latency of a candidate are known, or predicted, before it is trained: a *decoupled* problem, in which
some objectives cost nothing (Hernández-Lobato et al. 2016, "Predictive Entropy Search for Multi-objective Bayesian
Optimization", section 5; Garrido-Merchán and Hernández-Lobato 2019, PESMOC). Samplers that model every objective learn
what they could have looked up, and propose candidates whose cost turns out useless. Here each proposal scores a pool of
candidates that may still be proposed by the hypervolume that each is expected to add *at its own costs*:

- AP comes from a Gaussian process over choices, graph and costs (`fpn_bench.search.samplers.gp`); what to encode a
  candidate by follows White et al. 2021, "BANANAS", and Ru et al. 2021, "NAS-BOWL".
- The expected hypervolume improvement (Emmerich et al. 2006; Yang et al. 2019) needs no sampling: costs are plain
  numbers, so it is a sum over the steps of the front, each its volume of costs times the ordinary expected improvement
  over its AP (`expected_hypervolume_improvement`).
- What other workers are at counts as assessed with the expected AP, the *kriging believer* of Ginsbourger et al. 2010,
  so that parallel proposals differ.
- Constraints exclude, exactly. A cost that is not known yet is predicted from those that are, by the same process.
- Broken candidates, far below all others, are winsorised, else they would set the scale (`winsorised`).

The pool is the whole space where it is small. Else it is random candidates, neighbours of the front and of the best
scored ones, and crossings of them, renewed with each proposal, which searches the score like an evolution.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fpn_bench.analysis.pareto import best_first
from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.samplers.base import Floats, ProposingSampler, SamplerContext, objective_rows
from fpn_bench.search.samplers.gp import Batch, Encoded, Encoder, GaussianProcess, Ints, Kernel
from fpn_bench.search.samplers.improvement import expected_hypervolume_improvement, winsorised
from fpn_bench.search.samplers.pool import SETTLED, Pool
from fpn_bench.search.space import Choices, ChoiceSpace

PAIRS = 250_000
"""Most pairs of a candidate of the pool and one learned from that a proposal computes."""
_BEST, _LAST, _SOME = 80, 40, 40
"""Assessed candidates learned from, of many: of the first fronts, the latest, and at most so many at even steps."""
_REFITTED_ALWAYS, _GROWN = 12, 1.25
"""Weights of the kernel are fitted to so few candidates each time, then when their number has grown by a quarter."""
_SCORED, _MIN_SCORED = 800, 160
"""Members of the pool that are scored once proposals have to be quick, of `SETTLED` assessed candidates and of many:
scores of before are upper bounds, mostly, so that the longer a search is the fewer change their place."""
_FEW = 64
"""Candidates that the one furthest from those seen is chosen of, at the start."""


class KnownCostSampler(ProposingSampler):
    """See the module.

    Args:
        space, context, seed: see `ProposingSampler`.
        startup_trials: candidates spread over the costs before the process takes over.
        look_ups: most choice sets looked up for a proposal; four times as many for the first, fewer when hundreds were
            assessed. More find better candidates, until the pool is the whole space: as many as can be had in a small
            part of the time that one assessment takes.
        pool: most candidates in the pool of a space that is not small.
    """

    def __init__(
        self,
        space: ChoiceSpace,
        context: SamplerContext,
        *,
        seed: int,
        startup_trials: int = 4,
        look_ups: int = 256,
        pool: int = 4096,
    ) -> None:
        super().__init__(space, context, seed=seed)
        self._startup = startup_trials
        self._encoder = Encoder(space)
        self._pool = Pool(self, self._encoder, look_ups, pool)
        self._training_set = _TrainingSet(space)
        self._encoded: dict[int, tuple[Facts, Encoded]] = {}
        self._models: dict[str, _Model] = {}
        self._worst: dict[str, float] = {}
        self._cost_names = [o.name for o in space.costs]
        self._signs = np.array([-1.0 if o.maximize else 1.0 for o in space.costs])  # less is better from here on

    def propose(self, history: History) -> Choices | None:
        observed = self._training_set.update(history.observed)
        known = [*((o.choices, o.facts) for o in observed), *history.pending]
        encoded = [self._encode(choices, facts) for choices, facts in known]
        self._encoded = {id(facts): self._encoded[id(facts)] for _, facts in known}
        pool = self._pool
        pool.renew(history.taken, [o.choices for o in self._training_set.best], len(history.observed))
        if not len(pool):
            return None
        kernel = Kernel.of(self._encoder, pool.batch)
        seen = self._encoder.batch(encoded)
        if not observed or len(history.observed) + len(history.pending) < self._startup:
            return pool.members[self._maximin_index(kernel, seen)][0]
        scored = PAIRS // len(known)
        if len(history.observed) >= SETTLED:
            scored = max(_SCORED * SETTLED // len(history.observed), _MIN_SCORED)
        rows = pool.most_promising(scored, self.rng)
        asked = _Proposal(kernel, pool.batch.take(rows), seen, len(history.observed))
        costs = {
            name: self._cost(asked, name)
            for name in dict.fromkeys([*self._cost_names, *(c.name for c in self.space.constraints)])
        }
        scores = self._scores(asked, observed, costs)
        for bound in self.space.constraints:
            broken = [bound.violation(cost) > 0 for cost in costs[bound.name][0]]
            scores[broken] = -np.inf
        pool.scores[rows] = scores
        best = int(np.argmax(scores))
        return pool.members[rows[best]][0] if scores[best] > -np.inf else None

    def _encode(self, choices: Choices, facts: Facts) -> Encoded:
        """Of what was seen, which mostly is what was seen last time."""
        if id(facts) not in self._encoded:
            self._encoded[id(facts)] = facts, self._encoder.encode(choices, facts)
        return self._encoded[id(facts)][1]

    def _maximin_index(self, kernel: Kernel, seen: Batch) -> int:
        """The member of the pool whose costs are furthest from all seen, of a random few (Mitchell 1991)."""
        rows = np.array(self.rng.sample(self._pool.open_rows.tolist(), min(_FEW, len(self._pool))))
        if not len(seen):
            return int(rows[0])
        costs = kernel.costs(self._pool.batch.take(rows))
        nearest = ((costs[:, None] - kernel.costs(seen)) ** 2).sum(axis=2).min(axis=1)
        return int(rows[np.argmax(nearest)])

    def _cost(self, asked: _Proposal, name: str) -> tuple[Floats, Floats]:
        """A cost of those of the pool and of those seen; predicted where it is not known.

        Where nobody's is known it is the same for all, so that it decides nothing.
        """
        new, old = (batch.costs[:, self._encoder.costs.index(name)] for batch in (asked.pool, asked.seen))
        if np.isfinite(new).all() and np.isfinite(old).all():
            return new, old
        rows = np.flatnonzero(old > 0)
        if not len(rows):
            middle = np.nanmean(new) if np.isfinite(new).any() else 1.0
            return np.where(np.isnan(new), middle, new), np.full(len(old), middle)
        model = self._models.setdefault(name, _Model())
        model.learn(asked, rows, np.log(old[rows]), np.zeros(len(rows)), np.ones(len(rows)))
        filled = (
            np.where(np.isnan(known), np.exp(model.predict(asked, batch)[0]), known)
            for known, batch in ((new, asked.pool), (old, asked.seen))
        )
        return next(filled), next(filled)

    def _scores(
        self, asked: _Proposal, observed: Sequence[Observed], costs: Mapping[str, tuple[Floats, Floats]]
    ) -> Floats:
        """Expected hypervolume improvement of those of the pool."""
        names = self._cost_names
        new = np.array([costs[name][0] for name in names]).reshape(len(names), len(asked.pool)).T * self._signs
        old = np.array([costs[name][1] for name in names]).reshape(len(names), len(asked.seen)).T * self._signs
        reference = np.array([self._reference_point(n, new[:, i], old[:, i]) for i, n in enumerate(names)])
        if self.space.learned is None:
            flat = np.ones(len(new))
            return expected_hypervolume_improvement(new, flat, 1e-9 * flat, old, np.ones(len(old)), reference)
        ap, ap_sd, seeds = np.array([(o.ap, o.ap_sd, float(o.seeds)) for o in observed]).T
        ap = ap - min(ap.min(), 0.0)  # heights over 0, also of what is better the less it is
        count, waiting = len(ap), np.zeros(len(asked.seen) - len(ap))
        model = self._models.setdefault(self.space.learned.name, _Model())
        model.learn(asked, np.arange(count), winsorised(ap), ap_sd**2, seeds)
        posterior = ap
        if len(waiting) or ap_sd.any():
            posterior, _ = model.predict(asked, asked.seen)
        if len(waiting):  # as if they had come out as expected
            values = np.concatenate([winsorised(ap), posterior[count:]])
            variances, seeds = np.concatenate([ap_sd**2, waiting]), np.concatenate([seeds, waiting + 1])
            model.learn(asked, np.arange(len(values)), values, variances, seeds)
        # What was trained to the end has reached what it has; what was not, what is expected of it.
        reached = np.concatenate([np.where(ap_sd > 0, posterior[:count], ap), posterior[count:]])
        mean, sd = model.predict(asked, asked.pool)
        return expected_hypervolume_improvement(new, mean, sd, old, reached, reference)

    def _reference_point(self, name: str, new: Floats, old: Floats) -> float:
        """A little beyond the worst cost met so far, so that the dearest candidate can still add something."""
        worst = self._worst[name] = max(self._worst.get(name, -math.inf), float(new.max()))
        return worst + 0.01 * (worst - min(float(new.min()), float(old.min())) or abs(worst) or 1.0)


@dataclass(frozen=True, eq=False, slots=True)
class _Proposal:
    """One proposal: candidates to score, those assessed and being assessed, and how many the latter are in all."""

    kernel: Kernel
    pool: Batch
    seen: Batch
    observed: int


class _Model:
    """A process over some of the candidates seen, refitted when their number has grown."""

    def __init__(self) -> None:
        self._process = GaussianProcess()
        self._fitted_at = 0

    def learn(self, asked: _Proposal, rows: Ints, values: Floats, variances: Floats, seeds: Floats) -> None:
        self._train = asked.seen.take(rows)
        parts = asked.kernel.parts(self._train, self._train)
        refit = len(rows) <= _REFITTED_ALWAYS or asked.observed >= _GROWN * self._fitted_at
        if refit:
            self._fitted_at = asked.observed
        self._process.condition(parts, values, variances, seeds, refit=refit)

    def predict(self, asked: _Proposal, batch: Batch) -> tuple[Floats, Floats]:
        weights = self._process.weights
        assert weights is not None
        kernel = asked.kernel
        return self._process.predict(kernel.between(batch, self._train, weights), kernel.selves(batch, weights))


class _TrainingSet:
    """The assessed candidates that a process learns from: all, and when they are many the best, the last, and some.

    Attributes:
        best: those of the first fronts.
    """

    def __init__(self, space: ChoiceSpace) -> None:
        self._space = space
        self._heard: list[Observed] = []
        self.best: list[Observed] = []

    def update(self, observed: Sequence[Observed]) -> list[Observed]:
        known = len(self._heard)
        if known > len(observed) or not all(map(operator.is_, self._heard, observed)):  # more is known of one of them
            known, self.best = 0, []
        self._heard = list(observed)
        best = [*self.best, *observed[known:]]
        rows = best_first(objective_rows(self._space, best), [o.direction for o in self._space.objectives])
        self.best = [best[row] for row in itertools.islice(rows, _BEST)]
        if len(observed) <= _BEST + _LAST + _SOME:
            return self._heard
        step = 2 ** math.ceil(math.log2(len(observed) / _SOME))  # a power, so that they mostly are those of last time
        return list({id(o): o for o in (*self.best, *observed[::step], *observed[-_LAST:])}.values())
