"""Suites: a study whose candidates are listed instead of sampled."""

from __future__ import annotations

import pandas as pd
import pytest
from search_evaluator import FEATURES, PROTOCOL, InstantEvaluator, Prepare

from fpn_bench.errors import SpaceError, TrialError
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.search import Space, list_suites, load_study, run_study

SUITE = {
    "name": "made-up-suite",
    "backbone": {"name": "made_up_net"},
    "data": {"kind": "synthetic"},
    "image_size": [192, 192],
    "neck": {"channels": 32, "out_levels": [3, 4, 5]},
    "necks": [{"family": "fpn"}, {"family": "pafpn", "merge": "max"}, {"family": "fpn", "channels": 48}],
    "seeds": 2,
    "objectives": {"ap": "maximise", "macs": "minimise"},
}


def suite(**changes):
    return Space.from_dict({k: v for k, v in {**SUITE, **changes}.items() if v is not None})


def run(space, folder, evaluator=None, **options):
    evaluator = evaluator or InstantEvaluator(space)
    return *run_study(space, evaluator, PROTOCOL, folder, **options), evaluator


@pytest.mark.parametrize("name", list_suites())
def test_shipped_suites_can_be_run(name) -> None:
    shipped = Space.load(name)
    assert shipped.listed
    assert shipped.name == name
    for entry in shipped.backbones:
        shipped.check([FeatureSpec(level, 16 * 2**level, 2**level) for level in entry.levels])
    graphs = {shipped.to_graph(choices, FEATURES).id for choices in shipped.enumerate()}
    assert len(graphs) * len(shipped.backbones) == shipped.size  # no network is listed twice
    assert shipped.budget.trials == shipped.size * shipped.seeds


def test_the_necks_suite_has_every_neck_of_the_zoo() -> None:
    from fpn_bench import zoo

    assert set(Space.load("necks").families) == set(zoo.list_necks())


def test_each_candidate_is_trained_with_each_seed_and_nothing_else(tmp_path) -> None:
    study, result, evaluator = run(suite(), tmp_path / "s", seed=5)
    table = study.table()
    assert result.status == "finished"
    assert list(table["status"].unique()) == ["complete"]
    assert list(table["source"].unique()) == ["listed"]
    assert list(table["seed"]) == [5, 5, 5, 6, 6, 6]  # all once before any of them twice
    assert table.groupby("candidate").size().tolist() == [2, 2, 2]
    assert [*table["neck_label"][:3]] == ["fpn 32ch P3-P5", "pafpn 32ch P3-P5 merge=max", "fpn 48ch P3-P5"]
    assert len(evaluator.trained) == 6
    assert evaluator.measured == []  # latency is no objective


def test_lines_and_seeds_that_come_later_are_trained_then(tmp_path) -> None:
    run(suite(), tmp_path / "s")
    more = suite(seeds=3, necks=[*SUITE["necks"], {"family": "top_only"}])
    study, result, evaluator = run(more, tmp_path / "s")
    assert result.status == "finished"
    assert len(evaluator.trained) == 12 - 6
    assert study.table().groupby(["candidate", "seed"]).size().tolist() == [1] * 12
    _, result, evaluator = run(more, tmp_path / "s")
    assert (result.status, evaluator.trained) == ("finished", [])


def test_a_line_that_replaces_another_is_trained_whatever_was_paid_before(tmp_path) -> None:
    run(suite(), tmp_path / "s")
    other = suite(necks=[{"family": "top_only"}, {"family": "unet"}], seeds=1)
    _, result, evaluator = run(other, tmp_path / "s")
    assert (result.status, len(evaluator.trained)) == ("finished", 2)
    _, result, evaluator = run(other, tmp_path / "s", seed=7)
    assert (result.status, len(evaluator.trained)) == ("finished", 2)


def test_a_budget_that_is_given_bounds_a_suite(tmp_path) -> None:
    _, result, evaluator = run(suite(), tmp_path / "s", budget=4)
    assert (result.status, len(evaluator.trained)) == ("finished", 4)


def test_a_candidate_that_fails_ends_nothing(tmp_path) -> None:
    space = suite()
    evaluator = InstantEvaluator(space)
    evaluator.fails_on = {"pafpn": TrialError("the loss became nan")}
    study, result, _ = run(space, tmp_path / "s", evaluator)
    assert result.status == "finished"
    assert study.table()["status"].value_counts().to_dict() == {"complete": 4, "failed": 2}


def test_one_network_under_two_spellings_is_trained_once(tmp_path) -> None:
    twice = suite(necks=[{"family": "fpn"}, {"family": "fpn", "merge": "sum"}], seeds=2)
    study, result, evaluator = run(twice, tmp_path / "s")
    assert (result.status, len(evaluator.trained)) == ("finished", 2)
    assert study.table()["status"].tolist() == ["complete", "repeat", "complete", "repeat"]


def test_bounds_reject_what_is_listed(tmp_path) -> None:
    bounded = suite(constraints=["neck_params <= 70000"])
    study, result, _ = run(bounded, tmp_path / "s")
    rejected = study.table().query("status == 'rejected'")
    assert result.status == "finished"
    assert set(rejected["neck_label"]) == {"pafpn 32ch P3-P5 merge=max", "fpn 48ch P3-P5"}


def test_several_workers_share_a_suite(tmp_path) -> None:
    space = suite(seeds=3)
    prepare = Prepare(space, 0.05, tmp_path / "log")
    study, result, _ = run(space, tmp_path / "s", workers=2, prepare=prepare)
    assert result.status == "finished"
    done = study.table().query("status == 'complete'")
    assert done.groupby(["candidate", "seed"]).size().tolist() == [1] * 9
    assert len(prepare.trainings()) == 2 * 9


def test_a_neck_may_name_its_backbone() -> None:
    two = suite(
        backbone=[{"name": "one"}, {"name": "other"}],
        necks=[{"family": "fpn"}, {"family": "pafpn", "backbone": "other"}],
    )
    assert [(c["backbone"], c["family"]) for c in two.enumerate()] == [
        ("one", "fpn"),
        ("other", "fpn"),
        ("other", "pafpn"),
    ]
    assert two.budget.trials == len(two.enqueued()) == 6


def test_the_table_of_a_suite_is_read_as_any_other(tmp_path) -> None:
    run(suite(), tmp_path / "s")
    study = load_study(tmp_path / "s")
    assert set(study.front()["seeds"]) == {2}
    assert isinstance(study.table(), pd.DataFrame)
    assert study.table()["choice.family"].tolist() == ["fpn", "pafpn", "fpn"] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"necks": []}, r"necks: expected at least 1 of them"),
        ({"necks": [{"channels": 3}]}, r"necks\[0\]: expected `family:`"),
        ({"necks": [{"family": "fpnn"}]}, r"necks\[0\]: unknown neck 'fpnn': did you mean 'fpn'"),
        ({"necks": [{"family": "fpn", "merg": "max"}]}, r"necks\[0\]: unknown key 'merg': did you mean 'merge'"),
        ({"necks": [{"family": "fpn", "backbone": "x"}]}, r"necks\[0\]: unknown key 'backbone'"),
        ({"neck": {"chanels": 32}}, r"neck: unknown key 'chanels': did you mean 'channels'"),
        (
            {"neck": {"channels": {"choices": [1, 2]}}},
            r"channels: expected a constant, .* `necks:` lists what varies",
        ),
        ({"sampler": {"kind": "tpe"}}, r"sampler: .* nothing is sampled; .*leave it out"),
        ({"budget": {"trials": 3}}, r"budget: .* `necks:` and `seeds:` say what is trained"),
        ({"necks": None}, r"seeds: expected nothing, for there are no `necks:`; got 2"),
        ({"necks": None, "seeds": None, "neck": None}, r"neck: expected a value, got nothing"),
    ],
)
def test_what_a_suite_cannot_say_is_one_clear_line(changes, said) -> None:
    with pytest.raises(SpaceError, match=said) as error:
        suite(**changes)
    assert "\n" not in str(error.value)


def test_a_neck_that_cannot_be_built_is_named_before_anything_runs(tmp_path) -> None:
    space = suite(necks=[{"family": "fpn"}, {"family": "fpn", "merge": "sume"}])
    with pytest.raises(SpaceError, match=r"necks\[1\]: cannot be built: fpn 32ch P3-P5 merge=sume"):
        run(space, tmp_path / "s")
    with pytest.raises(SpaceError, match=r"necks\[0\]: cannot be built: .*expected out_levels to be a list of levels"):
        run(suite(necks=[{"family": "fpn", "out_levels": 3}]), tmp_path / "s")
    assert not (tmp_path / "s" / "study.db").exists()
