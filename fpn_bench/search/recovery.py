"""What becomes of trials whose worker is gone.

Where the worker died before its row was stored, the trial is failed with the reason, and its candidate is queued again,
as often as the budget's ``retries`` allow. Where the row was stored, the trial is over: see `fpn_bench.search.mirror`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fpn_bench.errors import FpnBenchError
from fpn_bench.search.leases import Leases
from fpn_bench.search.records import Status, interruption
from fpn_bench.search.space import ChoiceSpace, choices_key
from fpn_bench.search.state import StudyState
from fpn_bench.search.storage import Request, StoredTrial, StudyStorage, Transaction

_ENDED = "the process ended in mid-trial"


def recover_orphans(
    storage: StudyStorage, state: StudyState, leases: Leases, space: ChoiceSpace, *, seed: int
) -> list[int]:
    """Fail the running trials of workers that are gone, and queue their candidates again; the trials' numbers.

    Any number of workers may do this at a time.
    """
    # Who began these trials had announced itself before: an owner that is not heard of now is gone.
    owners = {trial.owner for trial in state.running.values()}
    gone = owners - {leases.worker, *leases.others()} if owners else set()
    if not gone:
        return []
    with storage.transaction() as transaction:
        state.apply(transaction.changes(state.revision))
        orphans = [trial for trial in state.running.values() if trial.owner in gone]
        for trial in orphans:
            fail_orphaned_trial(transaction, trial, leases.worker, space, seed=seed)
    state.apply(storage.changes(state.revision))
    return [trial.trial for trial in orphans]


def fail_orphaned_trial(
    transaction: Transaction, trial: StoredTrial, worker: str, space: ChoiceSpace, *, seed: int
) -> None:
    """End a trial that its owner will not end; it is this ``worker``'s from then on."""
    transaction.begin(trial.trial, worker)
    transaction.finish(trial.trial, _orphaned_row(trial, space, seed))
    request = trial.request
    if request.choices is not None and request.attempt <= space.budget.retries:
        again = Request(request.choices, request.source, request.seed, request.attempt + 1, request.continues)
        transaction.enqueue(again)


def _orphaned_row(trial: StoredTrial, space: ChoiceSpace, seed: int) -> dict[str, Any]:
    request = trial.request
    row: dict[str, Any] = {
        "trial": trial.trial,
        "source": request.source,
        "choices": request.choices,
        "seed": seed if request.seed is None else request.seed,
        "continues": request.continues,
        "attempt": request.attempt,
    }
    if request.choices is None:
        return row | interruption(_ENDED, queued=False)
    with suppress(FpnBenchError, KeyError, TypeError):  # what cannot be named is failed all the same
        row |= {"neck": space.family(request.choices), "neck_label": space.label(request.choices)}
    if request.attempt <= space.budget.retries:
        return row | interruption(_ENDED, queued=True)
    # Its own doing, as far as anyone can tell: it counts as known from here on.
    reason = f"interrupted: {_ENDED}; not queued again: it ended so {request.attempt} times"
    return row | {"status": Status.FAILED.value, "reason": reason, "paid": 0.0}


def queue_opening_trials(storage: StudyStorage, space: ChoiceSpace, *, seed: int) -> None:
    """Queue what is to be asked first, as far as it was not."""
    # With its seed, for another seed is another measurement. What waits is trained with this run's; what was queued
    # again stands there once more, further down.
    with storage.transaction() as transaction:
        there = set()
        for trial in transaction.changes(-1):
            row, request = trial.row, trial.request
            if row is None and request.choices is not None:
                there.add((choices_key(request.choices), seed if request.seed is None else request.seed))
            elif row is not None and not row.queued_again:
                there.add((choices_key(row.choices), row.seed))
        for wanted in space.enqueued():
            its = seed + wanted.repeat
            if (choices_key(wanted.choices), its) not in there:
                transaction.enqueue(Request(wanted.choices, wanted.source, its if space.listed else None))
