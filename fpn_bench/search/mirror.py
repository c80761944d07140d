"""Optuna's copy of a study: each finished trial, told once, for whoever opens the database with Optuna.

The order is: our row is stored, Optuna is told, the row is marked as told. A process that dies anywhere on the way
loses nothing. Before the first it has stored nothing, and another worker queues the candidate again; between the others
the row stands there, not marked, and `OptunaMirror.catch_up` tells Optuna what it does not know yet. It looks there
first, because the process may have died between telling and marking.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import optuna
from optuna.trial import create_trial

from fpn_bench.search.database import Database
from fpn_bench.search.leases import Leases
from fpn_bench.search.proposals import optuna_parameters, outcome
from fpn_bench.search.records import Columns, TrialRow
from fpn_bench.search.space import ChoiceSpace
from fpn_bench.search.storage import StudyStorage

TRIAL = "trial"
"""Attribute of Optuna's trial: the number of ours, which with several workers may be another than Optuna's."""
ROW = "row"
"""Attribute of Optuna's trial: some columns of its row, in one attribute, for each costs Optuna two queries."""
_SHOWN = ("source", "status", "reason", "candidate", "neck", "neck_label", "seed", "paid", "ap")
_FORGET_AFTER = 200
"""Optuna keeps every trial in memory that it was told, so the study is opened anew after so many."""


class OptunaMirror:
    """Tells Optuna's study in the database what became of trials.

    Args:
        database: where the study lives.
        name: of the study.
        space: what is searched.
    """

    def __init__(self, database: Database, name: str, space: ChoiceSpace) -> None:
        """See the class."""
        self._database, self._name, self._space = database, name, space
        self._study: optuna.Study | None = None
        self._told = 0

    def tell(self, row: TrialRow, columns: Columns, first: TrialRow) -> None:
        """Add a finished trial. A repeat says what the ``first`` row of its candidate said."""
        if self._study is None or self._told >= _FORGET_AFTER:
            self._study, self._told = self._open(), 0
        shown = {name: columns[name] for name in _SHOWN if columns.get(name) is not None}
        trial = create_trial(
            **optuna_parameters(self._space, row.choices),
            **outcome(self._space, row, first),
            user_attrs={TRIAL: row.trial, ROW: shown},
            system_attrs=dict(row.sampler_attrs),
        )
        begun = columns.get("started_at")
        if begun and trial.datetime_complete is not None:
            local = datetime.fromisoformat(begun).astimezone().replace(tzinfo=None)  # as Optuna has it
            trial.datetime_start = min(local, trial.datetime_complete)
        self._study.add_trial(trial)
        self._told += 1

    def catch_up(
        self,
        storage: StudyStorage,
        leases: Leases,
        first_of: Callable[[TrialRow], TrialRow],
    ) -> None:
        """Tell what workers that are gone did not come to tell, and what this one may not have."""
        living = leases.others()
        with storage.transaction() as transaction:
            untold = transaction.adopt_untold(leases.worker, living)
        if not untold:
            return
        known = {trial.user_attrs.get(TRIAL) for trial in self._open().get_trials(deepcopy=False)}
        for trial in storage.changes():
            if trial.trial in untold and trial.trial not in known and trial.row is not None:
                self.tell(trial.row, storage.columns(trial.trial), first_of(trial.row))
        with storage.transaction() as transaction:
            transaction.mark_told(untold)

    def _open(self) -> optuna.Study:
        return optuna.load_study(study_name=self._name, storage=self._database.optuna)
