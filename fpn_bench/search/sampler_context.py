"""What our own samplers are told: the cheap facts of any choice set, and the search so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from fpn_bench.search.records import Described, Evaluator, Facts, History, Observed, Status, TrialRow, known_costs
from fpn_bench.search.scheduler import Scheduler
from fpn_bench.search.space import Choices, ChoiceSpace, choices_key
from fpn_bench.search.storage import StoredTrial

_logger = logging.getLogger(__name__)

_REMEMBERED = 32_768
"""Choice sets whose facts are kept: as many as the largest pool of a sampler, and some."""


class StudyContext:
    """The candidates of one study, as one worker sees them.

    Args:
        space: what is searched.
        evaluator: describes candidates, and predicts latency where the space asks for it.
        scheduler: of the study; says what a stopped training is expected to come to.
    """

    def __init__(self, space: ChoiceSpace, evaluator: Evaluator, scheduler: Scheduler) -> None:
        """See the class."""
        self._space, self._evaluator = space, evaluator
        self._scheduler, self._state = scheduler, scheduler.state
        self._facts: dict[str, Facts | None] = {}
        self._observed: dict[str, Observed] = {}
        self._taken: set[str] = set()
        self._new: dict[str, None] = {}  # names of candidates with rows that were not taken in yet
        self._extrapolated = 0  # trainings that were known when stopped ones were last taken in
        self._state.listeners.append(self._listen)

    def describe(self, choices: Choices) -> Described | None:
        """What the evaluator says before anything is built; None of what cannot be."""
        try:
            return self._evaluator.describe(choices)
        except Exception:  # when it is asked for, its row says why
            _logger.debug("%s cannot be described", choices, exc_info=True)
            return None

    def look_up(self, choices: Choices) -> Facts | None:
        """The cheap facts of a choice set, remembered; None where it cannot be built."""
        key = choices_key(choices)
        if key not in self._facts:
            described = self.describe(choices)
            if len(self._facts) >= _REMEMBERED:  # the oldest goes
                del self._facts[next(iter(self._facts))]
            self._facts[key] = None if described is None else self._facts_of(described)
        return self._facts[key]

    def _facts_of(self, described: Described) -> Facts:
        costs = known_costs(described.facts)
        if self._space.predicts_latency and "latency_ms" not in costs:
            predicted = self._evaluator.predict(described).get("latency_predicted_ms")
            if predicted is not None:
                costs["latency_ms"] = float(predicted)
        return Facts(described.id, costs, described.tokens)

    def history(self) -> History:
        """What was found with any seed, what is under way, and what is not to be proposed again."""
        self._read()
        pending, running = [], set()
        for trial in self._state.running.values():
            choices = trial.request.choices
            facts = None if choices is None else self.look_up(choices)
            if choices is not None and facts is not None:
                pending.append((choices, facts))
                running.add(facts.id)
        return History(list(self._observed.values()), pending, _Either(self._taken, running))

    def _listen(self, trial: StoredTrial) -> None:
        if trial.row is not None and trial.trial in self._state.rows:
            self._new[trial.row.name] = None

    def _read(self) -> None:
        """Take in the rows that are new, and the stopped ones anew where more is known of how an AP still rises.

        More is known when a tenth more has come to its end: so each row is taken in a few times in all.
        """
        new, self._new = list(self._new), {}
        trained = self._scheduler.extrapolation.trained
        if self._space.rungs.epochs and trained > 1.1 * self._extrapolated:
            self._extrapolated = trained
            new += [row.name for row in self._state.stopped.values()]
        for name in dict.fromkeys(new):
            self._take(name)

    def _take(self, name: str) -> None:
        of = self._state.rows_of(name)
        if any(row.seed == self._scheduler.seed for row in of):
            self._taken.add(name)
            if not of[0].candidate:  # it ended before it had an id
                known = self.look_up(of[0].choices)
                self._taken |= {known.id} if known else set()
        complete = [row for row in of if row.status is Status.COMPLETE]
        found = complete or [row for row in of if row.status is Status.STOPPED][-1:]
        if not found or math.isnan(found[0].merit(self._space.learned)):
            return
        ap, ap_sd = self._ap(complete, found[0])
        if math.isnan(ap):
            return
        known = self.look_up(found[0].choices)
        facts = Facts(name, {**(known.costs if known else {}), **found[0].costs}, known.tokens if known else {})
        self._observed[name] = Observed(found[0].choices, facts, ap, ap_sd, len(found))

    def _ap(self, complete: list[TrialRow], last: TrialRow) -> tuple[float, float]:
        """Mean, and what makes it uncertain beyond the noise of full trainings."""
        if complete:
            return sum(row.merit(self._space.learned) for row in complete) / len(complete), 0.0
        return self._scheduler.expected_ap(last)


class _Either(AbstractSet[str]):
    """The union of two sets that is not copied."""

    def __init__(self, large: set[str], small: set[str]) -> None:
        self._large, self._small = large, small

    def __contains__(self, item: object) -> bool:
        return item in self._large or item in self._small

    def __iter__(self) -> Iterator[str]:
        yield from self._large
        yield from self._small - self._large

    def __len__(self) -> int:
        return len(self._large | self._small)
