"""A study in optuna-dashboard: what is rejected, failed or stopped there is never shown as best."""

from __future__ import annotations

import io
import json
from wsgiref.util import setup_testing_defaults

import pytest
from optuna_dashboard import wsgi
from search_evaluator import PROTOCOL, TrialError, space
from test_search_rungs import WIDE, Rising

from fpn_bench.search import run_study

SLOW, LARGE = {"family": "fpn", "merge": "max"}, {"family": "pafpn", "merge": "max"}


class Tempting(Rising):
    """Whatever merges by max is better than everything else in every objective, and breaks a bound.

    One kind is too large, which is known at once, the other too slow, which is known once it was measured. Of the
    others those of 40 channels fail.
    """

    def describe(self, choices):
        described, settings = super().describe(choices), self.space.settings(choices)
        if settings["merge"] == "max":
            described.facts.update(params=1, macs=1)
            if settings["family"] == LARGE["family"]:
                described.facts["neck_params"] = 10**12
        return described

    def measure(self, described):
        return {**super().measure(described), **({"latency_ms": 99.0} if described.facts["macs"] == 1 else {})}

    def train(self, described, seed, epochs, on_progress):
        result = super().train(described, seed, epochs, on_progress)
        if " 40ch" in described.label:
            raise TrialError("diverged")
        return {**result, "ap": 90.0} if described.facts["macs"] == 1 else result


def served(database) -> dict:
    """The study's detail as optuna-dashboard gives it to its page."""
    application = wsgi(f"sqlite:///{database}")

    def get(path, query=""):
        environment = {"PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": io.BytesIO()}
        setup_testing_defaults(environment)
        status = []
        body = b"".join(application(environment, lambda line, *_: status.append(line)))
        assert status == ["200 OK"]
        return json.loads(body)

    (one,) = get("/api/studies")["study_summaries"]
    return get(f"/api/studies/{one['study_id']}", "after=0")


@pytest.mark.parametrize("costs", [(), ("macs",), ("macs", "params")], ids=["one", "two", "three"])
def test_its_best_trials_are_the_front(tmp_path, costs) -> None:
    same = [{"family": "fpn", "channels": 64, "out_levels": [3, 4, 5], "down": down} for down in ("conv", "max_pool")]
    tempting = [
        {**kind, "channels": channels, "out_levels": [3, 4, 5]} for kind in (SLOW, LARGE) for channels in (32, 64)
    ]
    searched = space(
        neck=WIDE,
        objectives={"ap": "maximise", **dict.fromkeys(costs, "minimise")},
        constraints=["neck_params <= 1e9", "latency_ms <= 50"],
        training={"epochs": 8},
        rungs={"epochs": [1, 2]},
        sampler={"kind": "random"},
        enqueue=[*same, *tempting],
        budget={"trials": 14},
    )
    evaluator = Tempting(searched)
    study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table, front = study.table(), study.front()
    told = table.groupby("status").trial.apply(list).to_dict()
    assert {"complete", "rejected", "failed", "repeat", "stopped"} <= set(told)
    assert set(table.reason[table.status == "rejected"].str.extract(r"breaks (\w+)")[0]) == {
        "neck_params",
        "latency_ms",
    }
    for kind in (SLOW, LARGE):  # had they been trained, nothing else would be on the front
        described = evaluator.describe({**kind, "channels": 32})
        assert described.id in set(table.candidate[table.status == "rejected"])
        assert evaluator.train(described, 0, 8, lambda _: None)["ap"] > table.ap.max()
        assert all(described.facts[cost] < table.loc[table.status == "complete", cost].min() for cost in costs)

    shown = served(tmp_path / "s" / "study.db")
    assert len(shown["trials"]) >= len(table)
    best = table.set_index("trial").loc[[trial["number"] for trial in shown["best_trials"]]]
    assert set(best.candidate) == set(front.candidate)
    assert set(best.status) <= {"complete", "repeat"}  # what repeats a member of the front is told what that was
    states = {trial["number"]: trial["state"] for trial in shown["trials"]}
    kinds = {status: {states[number] for number in numbers} for status, numbers in told.items()}
    assert kinds["complete"] == {"Complete"}
    assert kinds["rejected"] == kinds["stopped"] == {"Pruned"}
    assert kinds["failed"] == {"Fail"}


def test_a_study_of_which_everything_is_rejected_has_no_best_trial(tmp_path) -> None:
    only = {**WIDE, "family": "fpn", "merge": "max", "channels": {"choices": [16, 32]}}
    searched = space(neck=only, constraints=["latency_ms <= 50"], enqueue="none", budget={"trials": 2})
    study, _ = run_study(searched, Tempting(searched), PROTOCOL, tmp_path / "s")
    assert set(study.table().status) == {"rejected"}
    assert served(tmp_path / "s" / "study.db")["best_trials"] == []
