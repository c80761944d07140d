"""`fpn-bench compare` on real studies and tables."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import pytest
from search_evaluator import PROTOCOL, InstantEvaluator, space
from tables import realistic_table, row

from fpn_bench.analysis import empty_table, make_table, write_csv
from fpn_bench.metrics import Metric, register, unregister
from fpn_bench.search import run_study


@pytest.fixture
def call(folder, monkeypatch, cli):
    monkeypatch.chdir(folder)
    return partial(cli, "compare")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Studies one and two of one protocol, one of another, several in one database, and tables."""
    folder = tmp_path_factory.mktemp("compare")
    searched = space()
    for name, seed in (("one", 0), ("two", 1)):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, folder / name, budget=6, seed=seed, share=False)
    longer = PROTOCOL.model_copy(update={"training": PROTOCOL.training.model_copy(update={"epochs": 5})})
    run_study(searched, InstantEvaluator(searched), longer, folder / "longer", budget=2, share=False)
    for name in ("first", "second"):
        where = f"sqlite:///{folder}/both.db"
        run_study(searched, InstantEvaluator(searched), PROTOCOL, folder / name, storage=where, name=name, budget=5)
    write_csv(realistic_table(30, seeds=3), folder / "a.csv")
    write_csv(realistic_table(30, seeds=3, random_state=8), folder / "b.csv")
    write_csv(empty_table(), folder / "empty.csv")
    return folder


def test_two_studies(call, folder):
    code, out, err = call("one", "two", "--csv", "shared.csv")
    assert code == 0, err
    headline, a, b, *_ = out.splitlines()
    assert "how B stands to A" in headline or headline.startswith("B is")
    assert (a.startswith("A: one, one, "), b.startswith("B: two, two, ")) == (True, True)
    assert "in both: AP (seeds)" in out
    assert "latency B / A (95 %)" in out
    assert out.splitlines()[-1] == "table: shared.csv"
    with (folder / "shared.csv").open() as stream:
        shared = list(csv.DictReader(stream))
    code, out, err = call("one/study.db", "two", "--json")
    assert code == 0, err
    found = json.loads(out, parse_constant=pytest.fail)
    assert (found["headline"], found["schema_version"]) == (headline, 1)
    assert (found["a"]["source"], found["b"]["studies"]) == ("one/study.db", ["two"])
    assert [r["candidate"] for r in found["shared"]] == [r["candidate"] for r in shared] != []
    assert [r["ap_a"] for r in found["shared"]] == pytest.approx([float(r["ap_a"]) for r in shared])
    assert [o["name"] for o in found["objectives"]] == ["ap", "latency_ms"]


def test_two_tables(call):
    code, out, err = call("a.csv", "b.csv", "--margin", "20", "--tolerance", "0.5")
    assert code == 0, err
    assert out.startswith("B is the same as A by shared candidates")
    assert "Differences within 20 are the same" in out
    assert "Ratios within 50 % are the same" in out


def test_a_study_and_itself_in_one_database(call, folder):
    both = f"sqlite:///{folder}/both.db"
    code, out, err = call(both, both, "--name-a", "first", "--name-b", "first")
    assert code == 0, err
    assert out.startswith("B is the same as A: hypervolume +0.0 %")
    code, out, err = call(both, both, "--name-a", "first", "--name-b", "second")
    assert code == 0, err
    assert "pairs of one and the same training, taken over or copied" in out


def test_an_empty_table(call):
    code, out, err = call("a.csv", "empty.csv")
    assert code == 0, err
    assert out.startswith("Nothing to compare: no candidate finished in B.")
    assert "B: empty.csv, no study, 0 rows" in out


def test_hostile_names_are_shown_as_they_are(call, folder):
    name = "[bold]x[/] \x1b[31m [link=http://x]y\\"
    facts = {"study": name, "neck_label": name, "neck": name, "weights": name, "backbone": name, "candidate": "[red]id"}
    for path, ap in (("h1.csv", 20.0), ("h2.csv", 21.0)):
        write_csv(make_table([row(0, **facts, ap=ap, torch=f"[/]{path}")]), folder / path)
    code, out, err = call("h1.csv", "h2.csv")
    assert code == 0, err
    assert "[bold]x[/] ?[31m [link=http://x]y\\" in out
    assert "\x1b" not in out
    assert "[red]id" in out
    assert "[/]h1.csv" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("one", "longer"), "(training.epochs: 8 in A, 5 in B); their AP does not compare: give two of one protocol"),
        (("one", "a.csv"), "a table does not carry the whole protocol: give two studies"),
        (("one", "none"), "no study at none: at hand are"),
        (("one", "none.csv"), "no table at none.csv"),
        (("one", "both.db"), "both.db holds first, second; say name=..."),
        (("both.db", "one", "--name-a", "frist"), "unknown study 'frist': did you mean 'first'"),
        (
            ("a.csv", "b.csv", "--margin", "-1"),
            "expected margin_ap to be a finite number of 0 or more, e.g. margin_ap=0.02, got -1.0",
        ),
        (("a.csv", "b.csv", "--tolerance", "nan"), "e.g. latency_tolerance=0.02, got nan"),
        (("a.csv", "one/space.yaml"), "one/space.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_is_one_line(args, message, call):
    code, out, err = call(*args)
    assert (code, out) == (2, ""), err
    assert message in err
    assert len(err.strip().splitlines()) == 1, err


def test_a_name_for_a_table_is_refused(call):
    code, _, err = call("a.csv", "b.csv", "--name-a", "vehicles")
    assert code == 2
    assert "expected a database or a folder with --name-a vehicles, got the table a.csv" in err


def test_studies_with_another_trained_objective(call, folder):
    register(Metric("ap_third", "AP/3", "maximize", "trained", noise="seeds", compute=lambda row: row["ap"] / 3))
    try:
        searched = space(objectives={"params": "minimise", "ap_third": "maximise"})
        for name, seed in (("third", 0), ("other_third", 1)):
            run_study(searched, InstantEvaluator(searched), PROTOCOL, folder / name, budget=6, seed=seed, share=False)
        code, out, err = call("third", "other_third")
        assert code == 0, err
        assert "best AP/3 at a cost" in out
        assert "in both: AP/3" in out
        code, out, err = call("third", "other_third", "--json")
        assert code == 0, err
        found = json.loads(out, parse_constant=pytest.fail)
        assert [o["name"] for o in found["objectives"]] == ["ap_third", "params"]
        assert found["shared"]
        for row_ in found["shared"]:
            assert row_["ap_third_difference"] == pytest.approx((row_["ap_b"] - row_["ap_a"]) / 3)
            assert row_["ap_third_verdict"] == "unclear"  # one seed each, and nothing known of the scatter
    finally:
        unregister("ap_third")
