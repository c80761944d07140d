"""What a worker decides before it asks: which stopped training goes on, whose rank needs another seed, when to end.

Everything here is a function of the `StudyState`, so that all workers of a study decide alike; none of it reads or
writes anything. A new rule by which trainings are stopped at a rung is a function in `fpn_bench.search.rungs.RULES`; a
new condition that ends the whole search is a function in `ENDINGS` at the end of this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fpn_bench.analysis import front_probability, hypervolume
from fpn_bench.metrics import metric_of
from fpn_bench.search.records import RunStatus, Status, TrialRow
from fpn_bench.search.replicates import Replicates, near_front, undecided
from fpn_bench.search.rungs import RULES, Extrapolation, Points, Rung, to_promote
from fpn_bench.search.space import ChoiceSpace, choices_key
from fpn_bench.search.state import StudyState, constraint_values
from fpn_bench.search.storage import Request, StoredTrial

PLATEAU = 0.01
"""A front whose hypervolume grew by less than this share has hardly grown."""
MAX_FAILED_IN_A_ROW = 8
"""So many failures in a row are no property of the candidates: they are taken back and the search stops."""
MAX_UNUSABLE_IN_A_ROW = 300
"""Rejections and choices that cannot be built cost milliseconds, but a sampler that finds nothing else must end."""
_CERTAIN = 0.05
"""A chance to be on the front below this, or above its complement, needs no further seed."""
_DRAWS = 500
_EPSILON = 1e-9


@dataclass
class Progress:
    """What a worker itself has lived through, beside the study.

    Attributes:
        failed: its paid failures in a row.
        unusable: its rejections and unbuildable choices in a row.
        exhausted: its sampler, and a look around, found no unseen candidate; listed candidates have no sampler.
        interrupted: it was asked to stop.
        elapsed_s: since it began.
    """

    failed: list[TrialRow]
    unusable: int = 0
    exhausted: bool = False
    interrupted: bool = False
    elapsed_s: float = 0.0


class Scheduler:
    """The decisions of a study.

    Args:
        space: what is searched, and how.
        state: what is known; kept up to date by the caller.
        seed: of the trainings asked first.
        budget: whole trainings to pay for in all; None is the space's own.
        seeds: that can be trained at all; None is any.
    """

    def __init__(
        self,
        space: ChoiceSpace,
        state: StudyState,
        *,
        seed: int,
        budget: float | None = None,
        seeds: Collection[int] | None = None,
    ) -> None:
        """See the class."""
        self.space, self.state, self.seed = space, state, seed
        self._given, self._seeds = budget, seeds
        costs = len(space.costs)
        self._learns = space.learned is not None
        self.extrapolation = Extrapolation(space.full_epochs, costs)
        self._at_rung = {rung: Points(costs) for rung in space.rungs.epochs}
        self._finished = Points(costs)
        self._replicates = Replicates(space.learned.name if space.learned else "ap", [o.name for o in space.costs])
        self._confirmed = 0.0
        self._plateau: tuple[int, bool] = (-1, False)
        state.listeners.append(self._index)

    def _index(self, trial: StoredTrial) -> None:
        """Take in a row where decisions look for it, so that none of them goes through the whole study.

        A complete row is taken in once: a later change of it (it was told, say) is no training more.
        """
        row = trial.row
        if row is None or row.trial not in self.state.rows:
            return
        costs, merit = self._costs_of(row), row.merit(self.space.learned)
        if row.status is Status.COMPLETE and self._finished.place(row.trial) is None:
            self._confirmed += row.paid if row.source == "confirmed" else 0.0
            self._finished.put(row.trial, row.trial, merit, costs)
            self._replicates.add(row, merit, costs)
            self.extrapolation.add(dict(row.curve), costs)
        if row.source == "sampled":
            for epochs, ap in row.curve:
                if epochs in self._at_rung:
                    stands_here = row.status is Status.STOPPED and self._last_rung(row) == epochs
                    self._at_rung[epochs].put(row.key, row.trial, ap, costs, promoted=not stands_here)

    def _costs_of(self, row: TrialRow) -> tuple[float, ...]:
        """What is not learned of the objectives, less is better."""
        return tuple(-row.value(o.name) if o.maximize else row.value(o.name) for o in self.space.costs)

    # -- what may be spent ----------------------------------------------------------------------------------------

    @property
    def budget(self) -> float:
        """Whole trainings that may be paid for in all; of listed candidates, whose list may grow, what is queued."""
        if self._given is not None:
            return float(self._given)
        if self.space.listed:
            return self.state.paid + len(self.state.running) + len(self.state.queued)
        return float(self.space.budget.trials)

    def rung_targets(self, source: str, reached: int) -> list[int]:
        """Epochs at which a training that has come to ``reached`` is looked at, the last of them its end.

        What is not the sampler's proposal is trained in one go: it is there to be compared with.
        """
        rungs = self.space.rungs.epochs if self._learns and source == "sampled" else ()
        return [*(r for r in rungs if r > reached), self.space.full_epochs]

    @property
    def min_cost(self) -> float:
        """What a new candidate will cost at least, as a share of a whole training."""
        return self.committed_cost(Request())

    def committed_cost(self, request: Request) -> float:
        """What a trial that is queued or running will cost at most before it is looked at again."""
        before = None if request.continues is None else self.state.rows.get(request.continues)
        reached = 0 if before is None else before.epochs
        return (self.rung_targets(request.source, reached)[0] - reached) / self.space.full_epochs

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left to spend once what is running has come to where it is looked at next."""
        committed = sum(self.committed_cost(trial.request) for trial in self.state.running.values())
        return self.budget - self.state.paid - committed <= _EPSILON

    def next_request(self, *, exhausted: bool) -> Request | None:
        """What is worth more than a new candidate; None where nothing is."""
        # A new candidate that the rest of the budget cannot bring to its end is worth less than one half there.
        last = self.state.paid + 1 > self.budget
        stopped = self.promotion(anyway=exhausted or last)
        if stopped is not None:
            return Request(stopped.choices, stopped.source, stopped.seed, continues=stopped.trial)
        contested = self.confirmation()
        if contested is not None:
            row, seed = contested
            return Request(row.choices, "confirmed", seed)
        return None

    # -- rungs ----------------------------------------------------------------------------------------------------

    def may_continue(self, row: TrialRow, rung: int) -> bool:
        """Whether a training that has just come past a rung goes straight on."""
        costs = [self._costs_of(row)]
        ap = np.array([dict(row.curve)[rung]])
        final = self.extrapolation(rung, ap, costs)
        arrived = Rung(np.array([row.trial]), ap, np.array(costs, dtype=np.float64), *final, np.array([False]))
        return row.trial in self._to_promote(Rung.merged([arrived, self._rung(rung)]), self.space.rungs.keep)

    def promotion(self, *, anyway: bool = False) -> TrialRow | None:
        """The stopped training to be taken up again; with ``anyway`` the best one, whatever the rung's share."""
        stopped = self.state.stopped
        if not self._learns or not self.space.rungs.epochs or not stopped:
            return None
        under_way = {t.request.continues for t in (*self.state.queued.values(), *self.state.running.values())}

        def first_free(trials: Iterable[int]) -> TrialRow | None:
            found = (stopped[trial] for trial in trials if trial in stopped and trial not in under_way)
            return next((row for row in found if row.seed == self.seed), None)

        rungs = [self._rung(rung) for rung in reversed(self.space.rungs.epochs)]
        for rung in rungs:
            if (row := first_free(self._to_promote(rung, self.space.rungs.keep))) is not None:
                return row
        if anyway:
            return first_free(self._to_promote(Rung.merged([rung.select(~rung.promoted) for rung in rungs]), 1.0))
        return None

    def _rung(self, epochs: int) -> Rung:
        return self._at_rung[epochs].rung(epochs, self.extrapolation)

    def _to_promote(self, rung: Rung, keep: float) -> list[int]:
        return to_promote(rung, self._finished.values, rule=RULES[self.space.rungs.rule], keep=keep)

    def _last_rung(self, row: TrialRow) -> int:
        """The last rung that a training passed: its checkpoint may lie beyond."""
        return max((rung for rung in self.space.rungs.epochs if rung <= row.epochs), default=0)

    def expected_ap(self, row: TrialRow) -> tuple[float, float]:
        """(mean, standard deviation) of the AP that a stopped training would come to."""
        rung = self._last_rung(row)
        ap = dict(row.curve).get(rung, math.nan)  # NaN only where the row is damaged
        mean, sd = self.extrapolation(rung, [ap], [self._costs_of(row)])
        return float(mean[0]), float(sd[0])

    # -- replicates -----------------------------------------------------------------------------------------------

    def confirmation(self) -> tuple[TrialRow, int] | None:
        """A candidate that another seed may change the answer about, and that seed; None when none is due.

        First the neck that would be taken and the one it is held against (`fpn_bench.search.replicates.undecided`),
        then the candidates whose place on the front is least certain.
        """
        if not self.space.budget.confirm or not self._learns:
            return None
        under_way = [
            t.request
            for t in (*self.state.queued.values(), *self.state.running.values())
            if t.request.source == "confirmed"
        ]
        if not self._confirmation_is_due(len(under_way)):
            return None
        for place in self._worth_a_seed():
            row = self._replicates.first[place]
            seed = self._free_seeds(row, under_way)
            if seed is not None:
                return row, seed
        return None

    def _confirmation_is_due(self, under_way: int) -> bool:
        """Whether the budget's ``confirm`` has anything left for further seeds now.

        They come last, when it is known who contends; where time may end the search at any moment, all along.
        """
        budget, asked = self.space.budget, self._confirmed + under_way
        if budget.hours is not None:
            return asked + 1 <= budget.confirm * self.state.paid
        new = sum(
            self.committed_cost(t.request) for t in self.state.running.values() if t.request.source != "confirmed"
        )
        searched = self.state.paid - self._confirmed + new
        most = budget.confirm * self.budget
        return asked + 1 <= most + _EPSILON and searched >= self.budget - most - _EPSILON

    def _worth_a_seed(self) -> list[int]:
        """Places in the replicates of candidates that are worth another seed, the best first."""
        replicates = self._replicates
        values, counts, noisy = replicates.values, replicates.counts, replicates.noisy
        sd = np.zeros_like(values)
        sd[:, noisy] = replicates.pooled_sd() / np.sqrt(counts)[:, None]
        published = np.array([row.source == "published" for row in replicates.first], dtype=np.bool_)
        first = undecided(values, counts, sd[:, 0], published, [metric_of(o.name).tolerance for o in self.space.costs])
        near = near_front(values, sd[:, 0]) if len(noisy) == 1 else np.arange(len(values))
        directions = ["maximize", *["minimize"] * len(self.space.costs)]
        chance = front_probability(values[near], directions, sd=sd[near], draws=_DRAWS)
        worth = chance * (1 - chance) / counts[near]
        contested = np.flatnonzero((chance > _CERTAIN) & (chance < 1 - _CERTAIN))
        return [*first, *(int(near[i]) for i in contested[np.argsort(-worth[contested], kind="stable")])]

    def _free_seeds(self, row: TrialRow, under_way: Sequence[Request]) -> int | None:
        """The next seed for a candidate: one that it was never trained with, whatever the outcome, because a seed
        that failed would fail again, and that no other worker trains it with; None where it has had enough."""
        key = choices_key(row.choices)
        others = {request.seed for request in under_way if choices_key(request.choices or {}) == key}
        of = self.state.rows_of(row.name)
        if sum(r.status is Status.COMPLETE for r in of) + len(others) >= self.space.budget.seeds:
            return None
        used = {r.seed for r in of} | others
        possible = range(self.seed, self.seed + 10_000) if self._seeds is None else sorted(self._seeds)
        return next((seed for seed in possible if seed not in used), None)

    # -- the end --------------------------------------------------------------------------------------------------

    def plateau(self) -> bool:
        """Whether the front has hardly grown over the last part of the budget."""
        if self._plateau[0] != len(self.state.rows):
            self._plateau = len(self.state.rows), self._front_is_stable()
        return self._plateau[1]

    def _front_is_stable(self) -> bool:
        budget = self.space.budget
        complete = list(self.state.complete.values())
        since = self.state.paid - budget.patience * self.budget
        if budget.until is None or since <= 0 or len(complete) < 2:
            return False
        spent, before = 0.0, []
        for row in self.state.rows.values():
            if row.status is Status.COMPLETE and spent < since:
                before.append(row)
            spent += row.paid
        if not before:
            return False
        values = self._values(complete)
        worst = values.max(axis=0, where=[o.direction == "minimize" for o in self.space.objectives], initial=0.0)
        directions = [o.direction for o in self.space.objectives]
        grown = hypervolume(values, directions, worst)
        return grown > 0 and hypervolume(self._values(before), directions, worst) >= (1 - PLATEAU) * grown

    def _values(self, rows: Sequence[TrialRow]) -> npt.NDArray[np.float64]:
        names = [o.name for o in self.space.objectives]
        return np.array([row.values(names) for row in rows])

    def ended(self, progress: Progress) -> tuple[RunStatus, str] | None:
        """How this worker's run is over, and the same for people; None while it is not."""
        return next((end for rule in ENDINGS if (end := rule(self, progress)) is not None), None)

    def spent(self) -> str:
        """What was paid, for people."""
        return f"{self._paid()} of {self.budget:g} trials"

    def _paid(self) -> str:
        return f"{round(self.state.paid, 2):g}"


# --------------------------------------------------------------------------------------------------------------
# Why a run ends: the first that holds

Ending = tuple[RunStatus, str]


def interrupted(scheduler: Scheduler, progress: Progress) -> Ending | None:
    """Ctrl-C."""
    if not progress.interrupted:
        return None
    return "interrupted", f"interrupted after {scheduler.spent()}; the same command goes on from there"


def failing(scheduler: Scheduler, progress: Progress) -> Ending | None:
    """So many failures in a row are the machine's."""
    if len(progress.failed) < MAX_FAILED_IN_A_ROW:
        return None
    return "failing", (
        f"stopped: {len(progress.failed)} candidates in a row failed, the last one: {progress.failed[-1].reason}; "
        "once that is mended, the same command tries them again"
    )


def unusable(scheduler: Scheduler, progress: Progress) -> Ending | None:
    """The sampler finds nothing that may be trained."""
    if progress.unusable < MAX_UNUSABLE_IN_A_ROW:
        return None
    return "infeasible", (
        f"stopped: {progress.unusable} candidates in a row were rejected or cannot be built{_nearest_miss(scheduler)}"
    )


def out_of_time(scheduler: Scheduler, progress: Progress) -> Ending | None:
    """The hours of this run."""
    hours = scheduler.space.budget.hours
    if hours is None or progress.elapsed_s < 3600 * hours:
        return None
    return "out_of_time", f"{hours:g} hours are over after {scheduler.spent()}"


def budget_spent(scheduler: Scheduler, progress: Progress) -> Ending | None:
    """The budget, once nothing is running that may change what is known."""
    state = scheduler.state
    if state.running or state.paid < scheduler.budget - _EPSILON:
        return None
    paid = f"{round(state.paid, 2):g}"
    if not state.complete and (miss := _nearest_miss(scheduler)):
        return "infeasible", f"no candidate of {paid} paid for is within the bounds{miss}"
    if not state.complete and state.stopped:
        return "finished", f"{scheduler.spent()}, and none of them finished: give it more"
    if not state.complete:
        last = next((r.reason for r in reversed(state.rows.values()) if r.status is Status.FAILED), "none")
        return "failing", f"none of {paid} trials completed; the last failed: {last}"
    return "finished", scheduler.spent()


def front_is_stable(scheduler: Scheduler, progress: Progress) -> Ending | None:
    """A plateau of the hypervolume, where the budget asks for it."""
    if scheduler.state.running or not scheduler.plateau():
        return None
    return "plateau", f"the front has hardly grown of late; stopped after {scheduler.spent()}"


def exhausted(scheduler: Scheduler, progress: Progress) -> Ending | None:
    """Nothing is left that is not known."""
    state = scheduler.state
    if state.running or not progress.exhausted or state.queued or scheduler.promotion(anyway=True) is not None:
        return None
    return "exhausted", (
        f"every candidate within the bounds is known after {scheduler.spent()}: nothing is left to search in this space"
    )


ENDINGS: tuple[Callable[[Scheduler, Progress], Ending | None], ...] = (
    interrupted,
    failing,
    unusable,
    out_of_time,
    budget_spent,
    front_is_stable,
    exhausted,
)


def _nearest_miss(scheduler: Scheduler) -> str:
    """The least violation among what was rejected, and whose."""
    rejected = [row for row in scheduler.state.rows.values() if row.status is Status.REJECTED]
    if not rejected:
        return ""
    constraints = scheduler.space.constraints
    nearest = min(rejected, key=lambda row: max(constraint_values(constraints, row.facts).values()))
    return f"; the nearest is {nearest.label}: {nearest.reason}"
