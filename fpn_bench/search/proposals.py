"""Proposals of candidates: the sampler of a space behind one interface, whether it is our own or Optuna's.

An Optuna sampler is asked in a study in memory, which holds what this worker has read of the stored one. It is asked
through ``ask`` and ``tell``, so it may take its time, and no transaction of the database is open meanwhile.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState, create_trial

from fpn_bench.search.records import Status, TrialRow
from fpn_bench.search.samplers import ProposingSampler, SamplerContext, create_sampler
from fpn_bench.search.samplers.parameters import distributions, encode, suggest
from fpn_bench.search.space import Choices, ChoiceSpace
from fpn_bench.search.state import StudyState, constraint_values
from fpn_bench.search.storage import FINISHED, RUNNING, StoredTrial

_MEMORYLESS_TRIALS = 500
"""A sampler that learns nothing starts over with an empty study after so many, for it needs none of them."""


def outcome(space: ChoiceSpace, row: TrialRow, first: TrialRow) -> dict[str, Any]:
    """What Optuna is told of a trial: ``state``, ``values``, ``constraints``. A repeat says what the ``first`` row of
    its candidate said.

    Rejected, and stopped at a rung, is PRUNED with its constraints, of which samplers learn; FAIL is ignored by them
    and would be proposed again, so a repeat of a failed candidate is PRUNED as well.
    """
    said = first if row.status is Status.REPEAT else row
    constraints = constraint_values(space.constraints, said.facts)
    if said.status is Status.COMPLETE:
        values = [said.value(o.name) for o in space.objectives]
        return {"state": TrialState.COMPLETE, "values": values, "constraints": constraints}
    pruned = said.status in (Status.REJECTED, Status.STOPPED) or row.status is Status.REPEAT
    return {"state": TrialState.PRUNED if pruned else TrialState.FAIL, "values": None, "constraints": constraints}


def optuna_parameters(space: ChoiceSpace, choices: Choices | None) -> dict[str, Any]:
    """``params`` and ``distributions`` of a choice set; empty for one from outside the space, which has none there."""
    if not choices or not space.contains(choices):
        return {"params": {}, "distributions": {}}
    params = encode(space, choices)
    asked = {name: d for key in choices for name, d in distributions(space.dimensions[key]).items()}
    return {"params": params, "distributions": {name: d for name, d in asked.items() if name in params}}


class Proposer(ABC):
    """Proposes the choice set of a trial."""

    @abstractmethod
    def propose(self, trial: int) -> Choices:
        """The choice set that a trial is to assess."""

    def propose_given(self, trial: int, choices: Choices) -> None:
        """Hear of a choice set that was given, for the sampler to learn of it."""
        return

    def attributes(self, trial: int) -> Mapping[str, Any]:
        """What the sampler noted about the trial; to be kept with it."""
        return {}


def create_proposer(
    space: ChoiceSpace,
    context: SamplerContext,
    state: StudyState,
    *,
    trials: int,
    seed: int,
    worker: str,
    alone: bool,
) -> Proposer:
    """The proposer of a space: see `create_sampler`."""
    sampler = create_sampler(space, trials=trials, seed=seed, candidates=context, alone=alone)
    if isinstance(sampler, ProposingSampler):
        return _OwnProposer(space, sampler, random.Random(seed))
    return _OptunaProposer(space, sampler, state, worker)


class _OwnProposer(Proposer):
    def __init__(self, space: ChoiceSpace, sampler: ProposingSampler, rng: random.Random) -> None:
        self._space, self._sampler, self._rng = space, sampler, rng

    def propose(self, trial: int) -> Choices:
        proposed = self._sampler.propose(self._sampler.context.history())
        return self._space.sample(self._rng) if proposed is None else proposed


class _OptunaProposer(Proposer):
    def __init__(self, space: ChoiceSpace, sampler: BaseSampler, state: StudyState, worker: str) -> None:
        self._space, self._sampler, self._state, self._worker = space, sampler, state, worker
        self._memoryless = isinstance(sampler, RandomSampler)
        self._asked: dict[int, optuna.Trial] = {}
        self._given: set[int] = set()
        self._others: dict[int, int] = {}  # running trials of other workers -> their numbers in memory
        self._count = 0
        self._study = self._new_study()
        if not self._memoryless:
            for trial in state.rows.values():
                self._add(trial)
            state.listeners.append(self._listen)

    def _new_study(self) -> optuna.Study:
        return optuna.create_study(directions=[o.direction for o in self._space.objectives], sampler=self._sampler)

    def propose(self, trial: int) -> Choices:
        self._count += 1
        if self._memoryless and self._count % _MEMORYLESS_TRIALS == 0:
            self._study = self._new_study()
        asked = self._study.ask()
        if not self._memoryless:
            self._asked[trial] = asked
        return suggest(self._space, asked)

    def propose_given(self, trial: int, choices: Choices) -> None:
        if self._memoryless or not self._space.contains(choices):
            return
        self._given.add(trial)
        self._study.enqueue_trial(encode(self._space, choices))
        self._asked[trial] = self._study.ask()
        suggest(self._space, self._asked[trial])

    def attributes(self, trial: int) -> Mapping[str, Any]:
        asked = self._asked.get(trial)
        if asked is None or trial in self._given:
            return {}
        return dict(self._study.get_trials(deepcopy=False)[asked.number].system_attrs)

    def _listen(self, trial: StoredTrial) -> None:
        """Tell the study in memory what became of a trial; those of others appear there as they run."""
        if trial.state == RUNNING and trial.owner != self._worker and trial.trial not in self._others:
            self._add_running(trial)
        if trial.state != FINISHED:
            return
        if (placeholder := self._others.pop(trial.trial, None)) is not None:
            self._study.tell(placeholder, state=TrialState.FAIL)
        asked, row = self._asked.pop(trial.trial, None), trial.row
        if row is None or row.interrupted:
            if asked is not None:
                self._study.tell(asked, state=TrialState.FAIL)
        elif asked is None:
            self._add(row)
        else:
            told = self._outcome(row)
            for text, value in told["constraints"].items():
                asked.set_constraint(text, value)
            self._study.tell(asked, told["values"], state=told["state"])

    def _add(self, row: TrialRow) -> None:
        parameters = optuna_parameters(self._space, row.choices)
        if parameters["params"]:
            noted = dict(row.sampler_attrs)
            self._study.add_trial(create_trial(**parameters, **self._outcome(row), system_attrs=noted))

    def _add_running(self, trial: StoredTrial) -> None:
        parameters = optuna_parameters(self._space, trial.request.choices)
        if parameters["params"]:
            self._others[trial.trial] = len(self._study.get_trials(deepcopy=False))
            self._study.add_trial(create_trial(**parameters, state=TrialState.RUNNING))

    def _outcome(self, row: TrialRow) -> dict[str, Any]:
        return outcome(self._space, row, self._state.first(row))
