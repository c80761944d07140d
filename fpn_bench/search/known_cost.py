"""The known-cost sampler: of the objectives only AP must be learned.

Params, MACs and latency of a candidate are known, or predicted, before it is trained: a *decoupled* problem, in which
some objectives cost nothing (Hernández-Lobato et al. 2016, "Predictive Entropy Search for Multi-objective Bayesian
Optimization", section 5; Garrido-Merchán and Hernández-Lobato 2019, PESMOC). Samplers that model every objective learn
what they could have looked up, and propose candidates whose cost turns out useless. Here each proposal scores a pool of
candidates that may still be proposed by the hypervolume that each is expected to add *at its own costs*:

- AP comes from a Gaussian process over choices, graph and costs (`fpn_bench.search.surrogate`); what to encode a
  candidate by follows White et al. 2021, "BANANAS", and Ru et al. 2021, "NAS-BOWL".
- The expected hypervolume improvement (Emmerich et al. 2006; Yang et al. 2019) needs no sampling: costs are plain
  numbers, so it is a sum over the steps of the front, each its volume of costs times the ordinary expected improvement
  over its AP (`expected_hypervolume_improvement`).
- What other workers are at counts as assessed with the expected AP, the *kriging believer* of Ginsbourger et al. 2010,
  so that parallel proposals differ.
- Constraints exclude, exactly. A cost that is not known yet is predicted from those that are, by the same process.
- Broken candidates, far below all others, are raised to just below them, else they would set the scale
  (`raised`).

The pool is the whole space where it is small. Else it is random candidates, neighbours of the front and of the best
scored ones, and crossings of them, renewed with each proposal, which searches the score like an evolution.
"""

from __future__ import annotations

import itertools
import math
import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from fpn_bench.analysis.pareto import pareto_mask
from fpn_bench.search.proposing import LEARNED, Floats, ProposingSampler, crossover, objective_rows
from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.space import Choices, ChoiceSpace, choices_key
from fpn_bench.search.surrogate import Batch, Encoded, Encoder, GaussianProcess, Ints, Kernel

WHOLE = 20_000
"""Largest space whose choice sets are all in the pool."""
PAIRS = 250_000
"""Most pairs of a candidate of the pool and one learned from that a proposal computes."""
CELLS = 1024
"""Most steps of the front over the space of costs; a finer front is thinned to so many."""
_BEST, _LAST, _SOME = 80, 40, 40
"""Assessed candidates learned from, of many: of the first fronts, the latest, and any."""
_REFITTED_ALWAYS, _GROWN = 12, 1.25
"""Weights of the kernel are fitted to so few candidates each time, then when their number has grown by a quarter."""
_FIRST = 4
"""How many times more look-ups the first proposal may take."""
_SETTLED, _LEAST, _SCORED = 256, 16, 800
"""From so many assessed candidates on proposals have to be quick: look-ups become fewer, in proportion, down to so
many, and so many of the pool are scored."""
_FEW = 64
"""Candidates that the one furthest from those seen is chosen of, at the start."""
_LITTER = 8
"""New members of the pool around a parent."""


# -- the score -----------------------------------------------------------------------------------------------------


def expected_hypervolume_improvement(
    costs: Floats, mean: Floats, sd: Floats, front_costs: Floats, front_ap: Floats, reference: Floats
) -> Floats:
    """Hypervolume that each candidate is expected to add, at known costs and normally distributed AP.

    The front is a staircase over cost space: AP h(u) is reached at costs u. A candidate of costs c and AP Y raises it
    to Y wherever u >= c, so that it adds the integral of max(Y - h(u), 0) over the box from c to the reference. h is
    constant on the cells of the grid through the front's costs, and the volume that the box shares with a cell is a
    product of lengths: a finite sum, exact for any number of costs, none included, as long as the grid has at most
    `CELLS` cells. Beyond that each axis keeps quantiles of the front's costs, and members move to the nearest.

    Args:
        costs: (p, d), to be minimised.
        mean, sd: (p,) of AP, to be maximised from 0.
        front_costs, front_ap: (f, d), (f,) of what is there already; dominated ones change nothing.
        reference: (d,) worst costs; what lies beyond adds nothing.

    Returns:
        (p,), in units of AP times those of all costs.
    """
    d = costs.shape[1]
    steps = pareto_mask(np.column_stack([front_costs, front_ap]), ["minimize"] * d + ["maximize"])
    steps &= (front_costs < reference).all(axis=1) & (front_ap > 0)
    front_costs, front_ap = front_costs[steps], front_ap[steps]
    at_most = max(int(CELLS ** (1 / d)) - 1, 1) if d else 0
    axes = [_thinned(np.unique(column), at_most) for column in front_costs.T]
    cell = np.zeros(len(front_ap), dtype=np.int64)
    for axis, column in zip(axes, front_costs.T, strict=True):
        cell = cell * (len(axis) + 1) + _nearest(axis, column) + 1
    heights = np.zeros([len(axis) + 1 for axis in axes])
    np.maximum.at(heights.reshape(-1), cell, front_ap)
    for i in range(d):
        heights = np.maximum.accumulate(heights, axis=i)
    levels, cells = np.unique(heights, return_inverse=True)
    volumes = np.ones((len(costs), 1))
    for axis, column, end in zip(axes, costs.T, reference, strict=True):
        ends = np.concatenate([[-np.inf], axis, [end]])
        lengths = np.maximum(ends[1:] - np.maximum(column[:, None], ends[:-1]), 0)
        volumes = (volumes[:, :, None] * lengths[:, None, :]).reshape(len(costs), -1)
    order = np.argsort(cells.ravel(), kind="stable")
    starts = np.searchsorted(cells.ravel()[order], np.arange(len(levels)))
    of_level = np.add.reduceat(volumes[:, order], starts, axis=1)
    return np.asarray((of_level * expected_improvement(mean[:, None], sd[:, None], levels)).sum(axis=1))


def expected_improvement(mean: Floats, sd: Floats, above: Floats) -> Floats:
    """E[max(Y - above, 0)] of a normal Y (Mockus 1975)."""
    away = mean - above
    z = away / sd
    return np.asarray(np.maximum(away * ndtr(z) + sd * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), 0.0))


def _thinned(ascending: Floats, at_most: int) -> Floats:
    if len(ascending) <= at_most:
        return ascending
    kept: Floats = ascending[np.linspace(0, len(ascending) - 1, at_most).round().astype(np.int64)]
    return kept


def _nearest(axis: Floats, values: Floats) -> npt.NDArray[np.intp]:
    return np.asarray(np.searchsorted((axis[1:] + axis[:-1]) / 2, values))


def raised(ap: Floats) -> Floats:
    """AP with what lies further below the lower quartile than half the quartiles' distance raised to there.

    Trainings that failed to learn lie far from all others, and a process that must reach them takes its scale and
    its smoothness from them. That they are bad is all there is to know of them (winsorising; Tukey 1962).
    """
    low, high = np.quantile(ap, [0.25, 0.75]).tolist()
    lifted: Floats = np.maximum(ap, low - 0.5 * (high - low))
    return lifted


# -- the sampler ---------------------------------------------------------------------------------------------------


class KnownCostSampler(ProposingSampler):
    """See the module.

    Args:
        space, look_up, history, seed: see `ProposingSampler`.
        startup_trials: candidates spread over the costs before the process takes over; None is 4.
        look_ups: most choice sets looked up for a proposal; four times as many for the first, fewer when hundreds were
            assessed. More find better candidates, until the pool is the whole space: as many as can be had in a small
            part of the time that one assessment takes.
        pool: most candidates in the pool of a space that is not small.
    """

    def __init__(
        self,
        space: ChoiceSpace,
        look_up: Callable[[Choices], Facts | None],
        history: Callable[[], History],
        *,
        seed: int,
        startup_trials: int | None = None,
        look_ups: int = 256,
        pool: int = 4096,
    ) -> None:
        """See the class."""
        super().__init__(space, look_up, history, seed=seed)
        self._startup = 4 if startup_trials is None else startup_trials
        self._encoder = Encoder(space)
        self._pool = _Pool(self, self._encoder, look_ups, pool)
        self._learned = _Learned(space)
        self._encoded: dict[int, tuple[Facts, Encoded]] = {}
        self._models: dict[str, _Model] = {}
        self._worst: dict[str, float] = {}
        self._cost_names = [o.name for o in space.objectives if o.name != LEARNED]

    def propose(self, history: History) -> Choices | None:
        """See `ProposingSampler.propose`."""
        observed = self._learned.update(history.observed)
        known = [*((o.choices, o.facts) for o in observed), *history.pending]
        encoded = [self._encode(choices, facts) for choices, facts in known]
        self._encoded = {id(facts): self._encoded[id(facts)] for _, facts in known}
        pool = self._pool
        pool.renew(history.taken, [o.choices for o in self._learned.best], len(history.observed))
        if not pool.members:
            return None
        kernel = Kernel.of(self._encoder, pool.batch)
        seen = self._encoder.batch(encoded)
        if not observed or len(history.observed) + len(history.pending) < self._startup:
            return pool.members[self._apart(kernel, seen)].choices
        scored = PAIRS // len(known) if len(history.observed) < _SETTLED else _SCORED
        rows = pool.most_promising(scored, self.rng)
        asked = _Asked(kernel, pool.batch.take(rows), seen, len(history.observed))
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
        return pool.members[rows[best]].choices if scores[best] > -np.inf else None

    def _encode(self, choices: Choices, facts: Facts) -> Encoded:
        """Of what was seen, which mostly is what was seen last time."""
        if id(facts) not in self._encoded:
            self._encoded[id(facts)] = facts, self._encoder.encode(choices, facts)
        return self._encoded[id(facts)][1]

    def _apart(self, kernel: Kernel, seen: Batch) -> int:
        """The member of the pool whose costs are furthest from all seen, of a random few (Mitchell 1991)."""
        rows = np.array(self.rng.sample(range(len(self._pool.members)), min(_FEW, len(self._pool.members))))
        if not len(seen):
            return int(rows[0])
        costs = kernel.costs(self._pool.batch.take(rows))
        nearest = ((costs[:, None] - kernel.costs(seen)) ** 2).sum(axis=2).min(axis=1)
        return int(rows[np.argmax(nearest)])

    def _cost(self, asked: _Asked, name: str) -> tuple[Floats, Floats]:
        """A cost of those of the pool and of those seen; predicted where it is not known.

        Where nobody's is known it is the same for all, so that it decides nothing.
        """
        new, old = (self._encoder.column(batch, name) for batch in (asked.pool, asked.seen))
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
        self, asked: _Asked, observed: Sequence[Observed], costs: Mapping[str, tuple[Floats, Floats]]
    ) -> Floats:
        """Expected hypervolume improvement of those of the pool."""
        names = self._cost_names
        new = np.array([costs[name][0] for name in names]).reshape(len(names), len(asked.pool)).T
        old = np.array([costs[name][1] for name in names]).reshape(len(names), len(asked.seen)).T
        reference = np.array([self._beyond(name, *costs[name]) for name in names])
        if all(o.name != LEARNED for o in self.space.objectives):
            flat = np.ones(len(new))
            return expected_hypervolume_improvement(new, flat, 1e-9 * flat, old, np.ones(len(old)), reference)
        ap, doubt, seeds = np.array([(o.ap, o.ap_sd, float(o.seeds)) for o in observed]).T
        count, waiting = len(ap), np.zeros(len(asked.seen) - len(ap))
        model = self._models.setdefault(LEARNED, _Model())
        model.learn(asked, np.arange(count), raised(ap), doubt**2, seeds)
        believed = ap
        if len(waiting) or doubt.any():
            believed, _ = model.predict(asked, asked.seen)
        if len(waiting):  # as if they had come out as expected
            values = np.concatenate([raised(ap), believed[count:]])
            variances, seeds = np.concatenate([doubt**2, waiting]), np.concatenate([seeds, waiting + 1])
            model.learn(asked, np.arange(len(values)), values, variances, seeds)
        # What was trained to the end has reached what it has; what was not, what is expected of it.
        reached = np.concatenate([np.where(doubt > 0, believed[:count], ap), believed[count:]])
        mean, sd = model.predict(asked, asked.pool)
        return expected_hypervolume_improvement(new, mean, sd, old, reached, reference)

    def _beyond(self, name: str, new: Floats, old: Floats) -> float:
        """A little beyond the worst cost met so far, so that the dearest candidate can still add something."""
        worst = self._worst[name] = max(self._worst.get(name, -math.inf), float(new.max()))
        return worst + 0.01 * (worst - min(float(new.min()), float(old.min())) or abs(worst) or 1.0)


@dataclass(frozen=True, eq=False, slots=True)
class _Asked:
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

    def learn(self, asked: _Asked, rows: Ints, values: Floats, variances: Floats, seeds: Floats) -> None:
        self._train = asked.seen.take(rows)
        parts = asked.kernel.parts(self._train, self._train)
        refit = len(rows) <= _REFITTED_ALWAYS or asked.observed >= _GROWN * self._fitted_at
        if refit:
            self._fitted_at = asked.observed
        self._process.condition(parts, values, variances, seeds, refit=refit)

    def predict(self, asked: _Asked, batch: Batch) -> tuple[Floats, Floats]:
        weights = self._process.weights
        assert weights is not None
        kernel = asked.kernel
        return self._process.predict(kernel.between(batch, self._train, weights), kernel.selves(batch, weights))


class _Learned:
    """The assessed candidates that a process learns from: all, and when they are many the best, the last, and some.

    Attributes:
        best: those of the first fronts.
    """

    def __init__(self, space: ChoiceSpace) -> None:
        self._space = space
        self._heard: list[Observed] = []
        self._start()

    def _start(self) -> None:
        self.best: list[Observed] = []
        self._some: list[Observed] = []
        self._count = 0
        self._rng = random.Random(0)

    def update(self, observed: Sequence[Observed]) -> list[Observed]:
        known = len(self._heard)
        if known > len(observed) or not all(map(operator.is_, self._heard, observed)):
            self._start()
            known = 0
        new = list(observed[known:])
        self._heard = list(observed)
        self.best = _first_fronts(self._space, [*self.best, *new], _BEST)
        for o in new:  # a reservoir: each is in it with the same probability (Vitter 1985)
            self._count += 1
            place = self._rng.randrange(self._count)
            if len(self._some) < _SOME:
                self._some.append(o)
            elif place < _SOME:
                self._some[place] = o
        if len(observed) <= _BEST + _LAST + _SOME:
            return self._heard
        return list({id(o): o for o in (*self.best, *self._some, *observed[-_LAST:])}.values())


def _first_fronts(space: ChoiceSpace, observed: Sequence[Observed], at_most: int) -> list[Observed]:
    """So many of the candidates, front by front."""
    values = objective_rows(space, observed)
    left = np.arange(len(observed))
    chosen: list[Observed] = []
    while len(left) and len(chosen) < at_most:
        mask = pareto_mask(values[left], [o.direction for o in space.objectives])
        mask = mask if mask.any() else np.ones(len(left), dtype=np.bool_)
        chosen += [observed[i] for i in left[mask]]
        left = left[~mask]
    return chosen[:at_most]


@dataclass(frozen=True, eq=False, slots=True)
class _Member:
    key: str
    choices: Choices
    facts: Facts


class _Pool:
    """What may be proposed, as far as it was looked up.

    Attributes:
        members: each network once.
        batch: the same, encoded.
        scores: (members,) as of when each was last scored; infinity before. Front and knowledge only grow, so that
            an old score is mostly an upper bound (Minoux 1978): the highest are the first to be scored again.
    """

    def __init__(self, sampler: ProposingSampler, encoder: Encoder, look_ups: int, at_most: int) -> None:
        self._sampler, self._encoder = sampler, encoder
        self._space, self._rng = sampler.space, sampler.rng
        self._look_ups, self._at_most = look_ups, at_most
        self.members: list[_Member] = []
        self.batch = encoder.batch([])
        self.scores: Floats = np.empty(0)
        size = self._space.size
        self._whole = size is not None and size <= WHOLE
        self._unlisted: list[Choices] | None = None
        self._ids: set[str] = set()
        self._seen: set[str] = set()

    def renew(self, taken: AbstractSet[str], best: Sequence[Choices], assessed: int) -> None:
        """Leave out what is taken and look up some more.

        Args:
            taken: ids.
            best: assessed choice sets whose neighbourhood is worth a look.
            assessed: how many there are in all.
        """
        gone = self._ids.intersection(taken)
        keep = np.array([m.facts.id not in gone for m in self.members]) if gone else np.ones(len(self.members), bool)
        if len(self.members) > self._at_most and not self._whole:
            keep &= self.scores >= np.partition(self.scores, -self._at_most)[-self._at_most]
        if not keep.all():
            self._keep(keep)
        looks = _FIRST * self._look_ups
        if self._seen:
            looks = min(self._look_ups, max(self._look_ups * _SETTLED // max(assessed, 1), _LEAST))
        found: list[_Member] = []
        for key, choices in itertools.islice(self._sources(best, looks), looks):
            facts = self._sampler.open_facts(choices, taken)
            if facts is not None and facts.id not in self._ids:
                self._ids.add(facts.id)
                found.append(_Member(key, choices, facts))
        if found or self._encoder.groups > len(self.batch.tokens):
            self.members += found
            self.batch = self._encoder.batch([self._encoder.encode(m.choices, m.facts) for m in found], self.batch)
            self.scores = np.concatenate([self.scores, np.full(len(found), np.inf)])

    def most_promising(self, count: int, rng: random.Random) -> Ints:
        """Rows to score: all, or the highest by their last score and a few others."""
        if len(self.members) <= count:
            return np.arange(len(self.members))
        order = np.argsort(-self.scores, kind="stable")
        top = max(count - count // 8, 1)
        return np.concatenate([order[:top], rng.sample(order[top:].tolist(), count - top)]).astype(np.int64)

    def _keep(self, kept: npt.NDArray[np.bool_]) -> None:
        for member in itertools.compress(self.members, ~kept):
            self._ids.discard(member.facts.id)
            if not self._whole:  # may be looked up again: not all that ever was is remembered
                self._seen.discard(member.key)
        self.members = list(itertools.compress(self.members, kept))
        self.batch, self.scores = self.batch.take(np.flatnonzero(kept)), self.scores[kept]

    def _sources(self, best: Sequence[Choices], wanted: int) -> Iterator[tuple[str, Choices]]:
        """Choice sets not looked up yet, with their text: of a small space every one in the end."""
        for choices in itertools.chain(self._around(best, wanted // 2), self._drawn(wanted)):
            key = choices_key(choices)
            if key not in self._seen:
                self._seen.add(key)
                yield key, choices

    def _around(self, best: Sequence[Choices], wanted: int) -> Iterator[Choices]:
        """Neighbours and crossings of the best that were assessed and of those with the highest scores."""
        space, rng = self._space, self._rng
        if self._unlisted == []:
            return
        top = np.argsort(np.where(np.isfinite(self.scores), -self.scores, np.inf), kind="stable")[:_LITTER]
        parents = [*best, *(self.members[i].choices for i in top)]
        for _ in range(wanted // _LITTER if parents else 0):
            one, other = rng.choice(parents), rng.choice(parents)
            if space.contains(one):
                yield from itertools.islice(space.neighbours(one, rng), _LITTER // 2)
            yield from (crossover(space, one, other, rng) for _ in range(_LITTER // 2))

    def _drawn(self, wanted: int) -> Iterator[Choices]:
        if not self._whole:
            yield from (self._space.sample(self._rng) for _ in range(wanted))
            return
        if self._unlisted is None:
            self._unlisted = list(self._space.enumerate())
            self._rng.shuffle(self._unlisted)
        while self._unlisted:
            yield self._unlisted.pop()
