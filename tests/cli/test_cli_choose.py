"""`fpn-bench choose` on real studies and tables."""

from __future__ import annotations

import json
from functools import partial

import pytest
from search_evaluator import PROTOCOL, InstantEvaluator, space
from tables import realistic_table

from fpn_bench.analysis import write_csv
from fpn_bench.search import run_study


@pytest.fixture
def call(folder, monkeypatch, cli):
    monkeypatch.chdir(folder)
    return partial(cli, "choose")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study and a table."""
    folder = tmp_path_factory.mktemp("choose")
    searched = space()
    run_study(searched, InstantEvaluator(searched), PROTOCOL, folder / "one", budget=6, share=False)
    write_csv(realistic_table(30, seeds=3), folder / "table.csv")
    return folder


def test_of_a_study_it_says_what_to_take_and_how_to_train_it(call):
    code, out, err = call("one")
    assert code == 0, err
    first, second, *_, last = out.splitlines()
    assert second.startswith("Its true AP is expected to be ")
    found = json.loads(call("one", "--json")[1], parse_constant=pytest.fail)
    take = found["take"]
    figures = f"{take['ap']:.1f} AP over 1 seed, {take['latency_ms']:.2f} ms latency"
    assert first.startswith(
        f"Take {take['neck_label']} (trial {take['trial']}): {figures}; not shown to be better than"
    )
    gain = found["gain"]
    assert first.endswith(
        f"FPN (fpn 64ch P3-P5), {gain['difference']:+.1f} AP [{gain['low']:+.1f}, {gain['high']:+.1f}]."
    )
    assert last == f"next: fpn-bench train one --trial {take['trial']}"
    assert found["expected_ap"]["low"] <= found["expected_ap"]["value"] <= found["expected_ap"]["high"]


def test_of_a_table_within_bounds(call):
    everything = json.loads(call("table.csv", "--json")[1])
    bound = everything["take"]["macs"] - 1
    code, out, err = call("table.csv", "--macs-max", str(bound), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["take"]["macs"] <= bound
    assert 1 <= found["allowed"] < everything["allowed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one", "--latency-max", "1e-9"), "expected a finished neck with latency_ms at most 1e-09, got "),
        (("one", "--params-max", "-1"), "expected a bound above 0 on params, got -1"),
        (("nowhere",), "nowhere"),
        (("table.csv", "--name", "x"), "expected a database or a folder with --name x, got the table table.csv"),
    ],
)
def test_what_cannot_be_answered_is_one_line(call, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
