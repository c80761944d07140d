"""What one worker knows of its study: every trial, read as it changes, and indexed by what decisions ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fpn_bench.search.records import Columns, Status, TrialRow, is_known
from fpn_bench.search.space import Constraint, choices_key
from fpn_bench.search.storage import FINISHED, QUEUED, StoredTrial

_log = logging.getLogger(__name__)


class StudyState:
    """The trials of a study as far as they were read.

    Attributes:
        rows: trial -> what became of it, of finished trials that count: no repeats, no interruptions.
        queued, running: trial -> what it is to assess, and who does.
        paid: what was spent, in whole trainings.
        complete: rows trained to the end, in the order of their arrival.
        revision: up to which everything was read.
    """

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.rows: dict[int, TrialRow] = {}
        self.queued: dict[int, StoredTrial] = {}
        self.running: dict[int, StoredTrial] = {}
        self.complete: dict[int, TrialRow] = {}
        self.stopped: dict[int, TrialRow] = {}
        self.paid = 0.0
        self.revision = -1
        self._of: dict[str, list[TrialRow]] = {}
        self._continued: set[int] = set()
        self._seen: set[int] = set()
        self._damaged: set[int] = set()
        self.listeners: list[Callable[[StoredTrial], object]] = []
        """Each is called with every change, after it was taken in."""

    def apply(self, changes: Iterable[StoredTrial]) -> None:
        """Take in what is new."""
        for trial in changes:
            self.revision = max(self.revision, trial.revision)
            self.queued.pop(trial.trial, None)
            self.running.pop(trial.trial, None)
            if trial.state != FINISHED:
                (self.queued if trial.state == QUEUED else self.running)[trial.trial] = trial
            else:
                self._finish(trial)
            for listener in self.listeners:
                listener(trial)

    def _finish(self, trial: StoredTrial) -> None:
        before = self.rows.pop(trial.trial, None)
        if before is not None:  # its failure was taken back
            self._forget(before)
        row = trial.row
        if row is None:
            if trial.trial not in self._damaged:
                _log.warning("the stored row of trial %d is left out: %s", trial.trial, trial.damage)
            self._damaged.add(trial.trial)
            return
        if row.interrupted:
            return
        self.paid += row.paid
        self.mark_seen(row.choices, row.seed)
        if row.status is Status.REPEAT:
            return
        self.rows[row.trial] = row
        self._of.setdefault(row.name, []).append(row)
        if row.status is Status.COMPLETE:
            self.complete[row.trial] = row
        if row.status is Status.STOPPED and row.trial not in self._continued:
            self.stopped[row.trial] = row
        if row.continues is not None:
            self._continued.add(row.continues)
            self.stopped.pop(row.continues, None)

    def _forget(self, row: TrialRow) -> None:
        self._seen.discard(hash((choices_key(row.choices), row.seed)))
        self.paid -= row.paid
        self._of[row.name].remove(row)
        self.complete.pop(row.trial, None)
        self.stopped.pop(row.trial, None)
        if row.continues is not None:
            self._continued.discard(row.continues)
            if (before := self.rows.get(row.continues)) is not None and before.status is Status.STOPPED:
                self.stopped[row.continues] = before

    # -- of one candidate -----------------------------------------------------------------------------------------

    def known(self, name: str, seed: int) -> TrialRow | None:
        """The last row of a candidate with this seed: how far it has come."""
        return next((row for row in reversed(self._of.get(name, ())) if row.seed == seed), None)

    def first(self, row: TrialRow) -> TrialRow:
        """The first row of a row's candidate with its seed: the row itself where there is none before it."""
        return next((known for known in self._of.get(row.name, ()) if known.seed == row.seed), row)

    def rows_of(self, name: str) -> list[TrialRow]:
        """All rows of a candidate, in the order of their arrival."""
        return self._of.get(name, [])

    def is_seen(self, choices: Mapping[str, Any], seed: int) -> bool:
        """Whether this choice set need not be described again."""
        return hash((choices_key(choices), seed)) in self._seen

    def mark_seen(self, choices: Mapping[str, Any], seed: int) -> None:
        """It need not."""
        self._seen.add(hash((choices_key(choices), seed)))


def constraint_values(constraints: Iterable[Constraint], facts: Columns) -> dict[str, float]:
    """Relative violation of each constraint (feasible <= 0), in the space's order; 0 where the fact is not known.

    A latency that is only predicted counts by the end of its interval that speaks for the candidate.
    """
    violations = {}
    for constraint in constraints:
        value = facts.get(constraint.name)
        if not is_known(value) and constraint.name == "latency_ms":
            value = facts.get(f"latency_predicted_{'low' if constraint.at_most else 'high'}_ms")
        violations[constraint.text] = constraint.violation(float(value)) if value is not None and is_known(value) else 0
    return violations


def is_feasible(constraints: Iterable[Constraint], facts: Columns) -> bool:
    """Whether no constraint is known to be broken."""
    return all(value <= 0 for value in constraint_values(constraints, facts).values())
