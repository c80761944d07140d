"""What a worker decides before it asks: which stopped training goes on, whose rank wants another seed, when to end.

All of it follows from the `Ledger` alone, so that every worker of a study decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fpn_bench.analysis import front_probability, hypervolume, pooled_sd
from fpn_bench.search.ledger import Ledger, Row, curve_of, name_of, values_of
from fpn_bench.search.rungs import RULES, Extrapolation, Finished, Standing, going_on
from fpn_bench.search.space import ChoiceSpace

PLATEAU = 0.01
"""A front whose hypervolume grew by less than this share has hardly grown."""
SEED_SPREAD = 0.05
"""What the AP of two seeds is taken to differ by (standard deviation, as a share) before any candidate has two."""
_CERTAIN = 0.05
"""A chance to be on the front below this, or above its complement, needs no further seed."""


class Decisions:
    """See the module.

    Args:
        space: what is searched, and how.
        ledger: what is known; refreshed by the caller.
        seed: of the trainings asked first.
        budget: in whole trainings.
    """

    def __init__(self, space: ChoiceSpace, ledger: Ledger, *, seed: int, budget: float) -> None:
        """See the class."""
        self._space, self._ledger = space, ledger
        self._seed, self._budget = seed, budget
        self._costs = tuple(o for o in space.objectives if o.name != "ap")
        self._learns = any(o.name == "ap" for o in space.objectives)
        self._extrapolated: tuple[int, Extrapolation] | None = None

    # -- rungs ----------------------------------------------------------------------------------------------------

    def targets(self, source: str, reached: int) -> list[int]:
        """Epochs at which a training that has come to ``reached`` is looked at, the last of them its end.

        What is not the sampler's proposal is trained in one go: it is there to be compared with.
        """
        rungs = self._space.rungs.epochs if self._learns and source == "sampled" else ()
        return [*(r for r in rungs if r > reached), self._space.full_epochs]

    @property
    def least(self) -> float:
        """What the next candidate will be paid at least, as a share of a whole training."""
        return self.promised({})

    def promised(self, attributes: Row) -> float:
        """What a trial that is queued or under way will be paid at most before it is looked at again."""
        before = self._ledger.rows.get(attributes.get("continues", -1))
        reached = 0 if before is None else int(before["epochs"])
        following = self.targets(attributes.get("source", "sampled"), reached)[0]
        return (following - reached) / self._space.full_epochs

    @property
    def extrapolation(self) -> Extrapolation:
        """From a rung to the end, by what is known."""
        if self._extrapolated is None or self._extrapolated[0] != self._ledger.completed:
            trained = [(curve_of(row), values_of(row, self._costs)) for row in self._ledger.complete()]
            fitted = Extrapolation(trained, self._space.full_epochs)
            self._extrapolated = self._ledger.completed, fitted
        return self._extrapolated[1]

    def goes_on(self, row: Row, rung: int) -> bool:
        """Whether a training that has just come past a rung goes straight on."""
        return row["trial"] in self._of_rung(rung, row)

    def promotion(self, *, anyway: bool = False) -> Row | None:
        """The stopped training to be taken up again; with ``anyway`` the best one, whatever the rung's share."""
        if not self._learns or not self._space.rungs.epochs:
            return None
        under_way = {trial.user_attrs.get("continues") for trial in (*self._ledger.waiting, *self._ledger.running)}
        stopped = {
            row["trial"]: row
            for row in self._ledger.stopped()
            if row["seed"] == self._seed and row["trial"] not in under_way
        }
        if not stopped:
            return None
        for rung in reversed(self._space.rungs.epochs):
            for trial in self._of_rung(rung):
                if trial in stopped:
                    return stopped[trial]
        if anyway:
            standings = [self._standing(row, self._stands_at(row), gone_on=False) for row in stopped.values()]
            best = going_on(standings, self._finished(), rule=RULES[self._space.rungs.rule], keep=1.0)
            return stopped[best[0]] if best else None
        return None

    def _of_rung(self, rung: int, arrived: Row | None = None) -> list[int]:
        standings = [] if arrived is None else [self._standing(arrived, rung, gone_on=False)]
        furthest: dict[tuple[str, int], Row] = {}
        for row in self._ledger.rows.values():
            if row["source"] == "sampled" and rung in curve_of(row):
                furthest[name_of(row), row["seed"]] = row  # in the order of trials: the last is the furthest
        for row in furthest.values():
            gone_on = not (row["status"] == "stopped" and self._stands_at(row) == rung)
            standings.append(self._standing(row, rung, gone_on=gone_on))
        rule = RULES[self._space.rungs.rule]
        return going_on(standings, self._finished(), rule=rule, keep=self._space.rungs.keep)

    def _stands_at(self, row: Row) -> int:
        """The last rung that a training came past: its checkpoint may lie beyond."""
        return max(rung for rung in self._space.rungs.epochs if rung <= int(row["epochs"]))

    def _standing(self, row: Row, rung: int, *, gone_on: bool) -> Standing:
        ap = curve_of(row)[rung]
        costs = values_of(row, self._costs)
        return Standing(row["trial"], ap, costs, *self.extrapolation(rung, ap, costs), gone_on)

    def expected_ap(self, row: Row) -> tuple[float, float]:
        """(mean, standard deviation) of the AP that a stopped training would come to."""
        rung = self._stands_at(row)
        return self.extrapolation(rung, curve_of(row)[rung], values_of(row, self._costs))

    def _finished(self) -> list[Finished]:
        return [Finished(float(row["ap"]), values_of(row, self._costs)) for row in self._ledger.complete()]

    # -- noise ----------------------------------------------------------------------------------------------------

    def confirmation(self) -> tuple[Row, int] | None:
        """A candidate whose place on the front is not certain, and the next seed for it; None when none is due.

        So much of what is spent goes into further seeds as the budget's ``confirm`` says.
        """
        budget = self._space.budget
        if not budget.confirm or not self._learns:
            return None
        complete = self._ledger.complete()
        under_way = [trial.user_attrs for trial in (*self._ledger.waiting, *self._ledger.running)]
        spent = sum(float(row["paid"]) for row in complete if row["source"] == "confirmed")
        spent += sum(attributes.get("source") == "confirmed" for attributes in under_way)
        if spent + 1 > budget.confirm * self._ledger.paid:
            return None
        rows: dict[str, list[Row]] = {}
        for row in complete:
            rows.setdefault(name_of(row), []).append(row)
        aps = [[float(row["ap"]) for row in of] for of in rows.values()]
        typical = pooled_sd(aps)
        if math.isnan(typical):
            typical = SEED_SPREAD * float(np.median(np.concatenate(aps)))
        counts = np.array([len(of) for of in aps])
        costs = [values_of(of[0], self._costs) for of in rows.values()]
        values = np.column_stack([[np.mean(ap) for ap in aps], np.reshape(costs, (len(aps), -1))])
        sd = np.zeros_like(values)
        sd[:, 0] = typical / np.sqrt(counts)
        chance = front_probability(values, ["maximize", *(o.direction for o in self._costs)], sd=sd)
        contested = (chance > _CERTAIN) & (chance < 1 - _CERTAIN) & (counts < budget.seeds)
        if not contested.any():
            return None
        worth = np.where(contested, chance * (1 - chance) / counts, -math.inf)
        chosen = list(rows.values())[int(np.argmax(worth))]
        # With whatever end: a seed that failed would fail again.
        used = {row["seed"] for row in self._ledger.rows_of(name_of(chosen[0]))}
        used |= {attributes.get("seed") for attributes in under_way}
        return chosen[0], next(seed for seed in range(self._seed, self._seed + 10_000) if seed not in used)

    # -- the end --------------------------------------------------------------------------------------------------

    def plateau(self) -> bool:
        """Whether the front has hardly grown over the last part of the budget."""
        budget = self._space.budget
        if budget.until is None:
            return False
        complete = self._ledger.complete()
        since = self._ledger.paid - budget.patience * self._budget
        if since <= 0 or len(complete) < 2:
            return False
        spent, before = 0.0, []
        for row in self._ledger.rows.values():
            if row["status"] == "complete" and spent < since:
                before.append(row)
            spent += float(row.get("paid", 0))
        if not before:
            return False
        values = self._values(complete)
        worst = values.max(axis=0, where=[o.direction == "minimize" for o in self._space.objectives], initial=0.0)
        directions = [o.direction for o in self._space.objectives]
        grown = hypervolume(values, directions, worst)
        return grown > 0 and hypervolume(self._values(before), directions, worst) >= (1 - PLATEAU) * grown

    def _values(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
        return np.array([values_of(row, self._space.objectives) for row in rows])
