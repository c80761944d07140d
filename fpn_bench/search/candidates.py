"""What our own samplers are told: the cheap facts of any choice set, and the search so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fpn_bench.search.decisions import Decisions
from fpn_bench.search.ledger import Ledger, Row, known_number, name_of
from fpn_bench.search.parameters import decode
from fpn_bench.search.records import Described, Facts, History, Observed
from fpn_bench.search.space import COSTS, Choices, ChoiceSpace, choices_key

if TYPE_CHECKING:
    from fpn_bench.search.driver import Evaluator

_log = logging.getLogger(__name__)

_REMEMBERED = 32_768
"""Choice sets whose facts are kept: as many as the largest pool of a sampler, and some."""


class Candidates:
    """The candidates of one study, as one worker sees them.

    Args:
        space: what is searched.
        evaluator: describes candidates, and predicts latency where the space asks for it.
        ledger: what is known; refreshed by the driver.
        decisions: what a stopped training is expected to come to.
        seed: of the trainings asked first.
    """

    def __init__(
        self, space: ChoiceSpace, evaluator: Evaluator, ledger: Ledger, decisions: Decisions, seed: int
    ) -> None:
        """See the class."""
        self._space, self._evaluator = space, evaluator
        self._ledger, self._decisions, self._seed = ledger, decisions, seed
        self._facts: dict[str, Facts | None] = {}
        self._observed: dict[str, Observed] = {}
        self._taken: set[str] = set()
        self._rows_read: set[int] = set()
        self._extrapolation: object = None

    def describe(self, choices: Choices) -> Described | None:
        """What the evaluator says before anything is built; None of what cannot be."""
        try:
            return self._evaluator.describe(choices)
        except Exception as error:  # when it is asked for, its row says why
            _log.debug("%s cannot be described: %s", choices, error)
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
        costs = numbers(described.facts)
        if self._space.predicts_latency and "latency_ms" not in costs:
            predicted = self._evaluator.predict(described).get("latency_predicted_ms")
            if predicted is not None:
                costs["latency_ms"] = float(predicted)
        return Facts(described.id, costs, described.tokens)

    def history(self) -> History:
        """What was found with any seed, what is under way, and what is not to be proposed again."""
        self._read()
        pending, running = [], set()
        for trial in self._ledger.running:
            choices = trial.user_attrs.get("choices") or decode(self._space, trial.params)
            facts = None if choices is None else self.look_up(choices)
            if choices is not None and facts is not None:
                pending.append((choices, facts))
                running.add(facts.id)
        return History(list(self._observed.values()), pending, self._taken | running)

    def _read(self) -> None:
        """Take in the rows that are new, and the stopped ones anew where more is known of how an AP still rises."""
        new = [row for number, row in self._ledger.rows.items() if number not in self._rows_read]
        self._rows_read |= {row["trial"] for row in new}
        if self._space.rungs.epochs and self._extrapolation is not self._decisions.extrapolation:
            self._extrapolation = self._decisions.extrapolation
            new = [*new, *self._ledger.stopped()]
        for name in dict.fromkeys(name_of(row) for row in new):
            self._take(name)

    def _take(self, name: str) -> None:
        of = self._ledger.rows_of(name)
        if any(row["seed"] == self._seed for row in of):
            self._taken.add(name)
            if not of[0].get("candidate"):  # it never came so far as to be told its id
                known = self.look_up(of[0]["choices"])
                self._taken |= {known.id} if known else set()
        complete = [row for row in of if row["status"] == "complete"]
        found = complete or [row for row in of if row["status"] == "stopped"][-1:]
        if not found or not known_number(found[0].get("ap")):
            return
        known = self.look_up(found[0]["choices"])
        facts = Facts(name, {**(known.costs if known else {}), **numbers(found[0])}, known.tokens if known else {})
        if complete:
            ap, sd = sum(float(row["ap"]) for row in complete) / len(complete), 0.0
        else:
            ap, sd = self._decisions.expected_ap(found[0])
        self._observed[name] = Observed(found[0]["choices"], facts, ap, sd, len(found))


def numbers(row: Row | Mapping[str, Any]) -> dict[str, float]:
    """The costs that a row has."""
    return {name: float(row[name]) for name in COSTS if known_number(row.get(name)) and math.isfinite(row[name])}
