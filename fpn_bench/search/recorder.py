"""The end of a trial: its row is stored, then Optuna is told, then the row is marked as told.

The row is stored whole, in one transaction: killed at any point, a study has each trial either whole or not at all, and
what Optuna was not told it is told by whoever looks next (`fpn_bench.search.mirror`).
"""

from __future__ import annotations

from fpn_bench.search.database import DATABASE_ERRORS
from fpn_bench.search.leases import Leases
from fpn_bench.search.mirror import OptunaMirror
from fpn_bench.search.opening import OpenStudy
from fpn_bench.search.records import Columns, TrialRow
from fpn_bench.search.space import ChoiceSpace
from fpn_bench.search.state import StudyState
from fpn_bench.search.storage import FINISHED, RUNNING, Request, Transaction


class TrialRecorder:
    """Stores the rows of one worker's trials and tells Optuna.

    Attributes:
        must_catch_up: some trial may have been stored and not told.
    """

    def __init__(self, study: OpenStudy, space: ChoiceSpace, state: StudyState, leases: Leases) -> None:
        """See the class."""
        self._storage, self._state, self._leases = study.storage, state, leases
        self._is_file = study.database.is_file
        self._mirror = OptunaMirror(study.database, study.name, space)
        self._told: list[int] = []  # and not marked yet
        self.must_catch_up = True

    def store(self, trial: int, row: Columns, again: Request | None) -> bool:
        """Store a row, and with ``again`` queue its candidate; False where the trial is another worker's by now."""
        with self._storage.transaction() as transaction:
            state, owner = transaction.state_and_owner(trial)
            if owner != self._leases.worker:
                return False
            if state == RUNNING:
                transaction.finish(trial, row)
                if again is not None:
                    transaction.enqueue(again)
            return state in (RUNNING, FINISHED)  # the latter where the answer to an earlier try was lost

    def tell(self, row: Columns) -> None:
        """Tell Optuna of a stored row; `mark_told` marks it, with the next change that is due anyway."""
        typed = TrialRow.from_columns(row)
        try:
            self._mirror.tell(typed, row, self._state.first(typed))
        except DATABASE_ERRORS:
            if self._is_file:
                raise
            self.must_catch_up = True  # it may have been told or not
            return
        self._told.append(typed.trial)

    def mark_told(self, transaction: Transaction) -> None:
        """Mark what Optuna was told."""
        transaction.mark_told(self._told)

    def forget_told(self) -> None:
        """`mark_told` was committed."""
        self._told = []

    def catch_up(self) -> None:
        """Tell Optuna what workers that are gone did not."""
        with self._storage.transaction() as transaction:
            self.mark_told(transaction)
        self.forget_told()
        self._mirror.catch_up(self._storage, self._leases, self._state.first)
        self.must_catch_up = False
