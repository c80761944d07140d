"""What a study knows: its rows, read as they come, and what follows from them for the next decision.

Several workers write to one study, so each reads it anew before it decides. Finished trials never change, and are read
once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fpn_bench.analysis.rows import Objective
from fpn_bench.search.space import choices_key

ROW = "row"
"""Trial attribute: the trial's row of the table, as JSON."""
DETECTIONS = "detections"
"""Key of a row that is no column: what a complete training found on the study's sample images, `Boxes` by position in
the val split. As JSON in one string, a tenth of the memory that its numbers would take wherever rows are held."""
EXCUSED = "excused"
"""Study attribute, with a trial's number behind it: it failed in a row too long to be the candidate's fault."""

Row = Mapping[str, Any]


def name_of(row: Row) -> str:
    """What two rows of one network share: the candidate's id, or the choices where they could not be built."""
    return str(row.get("candidate") or choices_key(row["choices"]))


def known_number(value: Any) -> bool:
    """Whether this is a figure at all."""
    return value is not None and not math.isnan(float(value))


def interruption(reason: str, *, queued: bool) -> dict[str, Any]:
    """What a row says whose candidate was not assessed to the end, by no fault of its own."""
    reason = f"interrupted: {reason}" + ("; queued again" if queued else "")
    return {"status": "failed", "reason": reason, "interrupted": True, "queued_again": queued, "paid": 0.0}


def stored_rows(study: optuna.Study) -> Iterator[tuple[FrozenTrial, Row | None]]:
    """Each trial, in order, with its row of the table; None before it has one.

    A row that a rung stopped says "continued" where a later trial took it up again.
    """
    excused = excused_trials(study)
    trials = study.get_trials(deepcopy=False)
    rows = [trial.user_attrs.get(ROW) for trial in trials]
    gone_on = {row["continues"] for row in rows if row and row.get("continues") is not None and not _void(row)}
    for trial, row in zip(trials, rows, strict=True):
        if row is not None and trial.number in excused:
            row = {**row, **interruption(row["reason"], queued=True)}
        if row is not None and row["status"] == "stopped" and trial.number in gone_on:
            row = {**row, "status": "continued"}
        yield trial, row


def excused_trials(study: optuna.Study) -> set[int]:
    """Numbers of the trials whose failure was taken back."""
    attributes = study.user_attrs
    marked = {int(name.split()[1]) for name in attributes if name.startswith(f"{EXCUSED} ")}
    return marked | set(attributes.get(EXCUSED, ()))  # one list, as studies of before have it


def _void(row: Row) -> bool:
    return bool(row.get("interrupted")) or row["status"] == "repeat"


class Ledger:
    """The rows of a study, as far as they were read.

    Attributes:
        rows: trial -> its row, of finished trials that count: no repeats, no interruptions.
        waiting, running: trials that are not finished.
        paid: what was spent, in whole trainings.
        completed: rows that were trained to the end.
    """

    def __init__(self, study: optuna.Study) -> None:
        """Nothing is read yet."""
        self._study = study
        self._open: set[int] = set()
        self._read = 0  # trials up to this number have been looked at
        self._of: dict[tuple[str, int], list[Row]] = {}
        self._seeds: dict[str, list[int]] = {}
        self._continued: set[int] = set()
        self.rows: dict[int, Row] = {}
        self.waiting: list[FrozenTrial] = []
        self.running: list[FrozenTrial] = []
        self.seen: set[tuple[str, int]] = set()  # choice sets, with the seed, that need not be described again
        self.paid = 0.0
        self.completed = 0
        self.fresh: list[Row] = []
        """Rows read by the last `refresh`, interruptions and repeats included."""

    def refresh(self) -> None:
        """Read what is new."""
        trials = self._study.get_trials(deepcopy=False)
        self.waiting, self.running, self.fresh = [], [], []
        for number in sorted(self._open | set(range(self._read, len(trials)))):
            trial = trials[number]
            if not trial.state.is_finished():
                self._open.add(number)
                (self.waiting if trial.state is TrialState.WAITING else self.running).append(trial)
                continue
            self._open.discard(number)
            row = trial.user_attrs.get(ROW)
            if row is not None:
                self._take(row)
        self._read = len(trials)
        if self.waiting or any(row["status"] == "failed" for row in self.fresh):
            self._excuse(excused_trials(self._study))

    def _take(self, row: Row) -> None:
        self.fresh.append(row)
        if row.get("interrupted"):
            return
        self.paid += float(row.get("paid", 0))
        self.seen.add((choices_key(row["choices"]), row["seed"]))
        if row["status"] == "repeat":
            return
        self.completed += row["status"] == "complete"
        self.rows[row["trial"]] = row
        name = name_of(row)
        self._of.setdefault((name, row["seed"]), []).append(row)
        self._seeds.setdefault(name, []).extend({row["seed"]} - set(self._seeds.get(name, ())))
        if row.get("continues") is not None:
            self._continued.add(row["continues"])

    def _excuse(self, numbers: Collection[int]) -> None:
        """Take back what was read of failures that were no property of their candidates."""
        for number in numbers:
            row = self.rows.pop(number, None)
            if row is not None:
                self.seen.discard((choices_key(row["choices"]), row["seed"]))
                self.paid -= float(row.get("paid", 0))
                self._of[name_of(row), row["seed"]].remove(row)

    # -- of one candidate -----------------------------------------------------------------------------------------

    def known(self, name: str, seed: int) -> Row | None:
        """The last row of a candidate with this seed: how far it has come."""
        rows = self._of.get((name, seed))
        return rows[-1] if rows else None

    def first(self, name: str, seed: int) -> Row | None:
        """The first of them."""
        rows = self._of.get((name, seed))
        return rows[0] if rows else None

    def rows_of(self, name: str) -> list[Row]:
        """All rows of a candidate, seed by seed, in order."""
        return [row for seed in self._seeds.get(name, ()) for row in self._of[name, seed]]

    def stopped(self) -> list[Row]:
        """Rows that a rung stopped and that no trial has taken up again."""
        return [r for n, r in self.rows.items() if r["status"] == "stopped" and n not in self._continued]

    def complete(self) -> list[Row]:
        """Rows trained to the end."""
        return [row for row in self.rows.values() if row["status"] == "complete"]


def curve_of(row: Row) -> dict[int, float]:
    """AP by epoch, as far as it was taken."""
    curve = {int(epoch): float(ap) for epoch, ap in row.get("ap_curve") or ()}
    if known_number(row.get("ap")) and row.get("epochs"):
        curve[int(row["epochs"])] = float(row["ap"])
    return curve


def values_of(row: Row, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The objectives as they are told."""
    return tuple(float(row[o.name]) for o in objectives)
