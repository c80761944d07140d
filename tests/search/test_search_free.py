"""Free genomes in a search space: read strictly, asked of Optuna gene by gene, searched like all else."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_evaluator import FEATURES, PROTOCOL, InstantEvaluator, space

from fpn_bench.errors import SpaceError
from fpn_bench.graph import NeckGraph
from fpn_bench.search import Space, load_study, run_study
from fpn_bench.search.samplers import create_sampler
from fpn_bench.search.samplers.parameters import decode, distributions, encode, suggest
from fpn_bench.search.space import FreeDimension, choices_key
from fpn_bench.search.storage import RUNNING
from fpn_bench.zoo import create_graph

CELLS = {
    "family": {"choices": ["merging_cells", "fpn"]},
    "channels": {"choices": [32, 48]},
    "out_levels": [3, 4, 5, 6, 7],
    "cell": {"free": "merging_cells", "levels": [3, 4, 5, 6, 7]},
    "repeats": {"range": [1, 3]},
}
DAGS = {
    "family": "opa_fpn",
    "channels": {"choices": [32, 48]},
    "out_levels": {"choices": [[3, 4, 5], [3, 4, 5, 6]]},
    "dag": {"free": "pyramid_dags", "nodes": 3, "when": {"channels": 32}},
}
FEW = {
    **DAGS,
    "channels": 32,
    "out_levels": [3, 4],
    "dag": {"free": "pyramid_dags", "nodes": 2, "paths": ["none", "TD"]},
}
BLOCKS = {"cells": CELLS, "dags": DAGS}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_choice_sets_and_optunas_parameters_are_one(block, seed):
    searched = space(neck=block)
    rng = random.Random(seed)
    choices = searched.sample(rng)
    assert searched.contains(choices)
    params = encode(searched, choices)
    assert decode(searched, params) == choices
    asked = {k for k, d in searched.dimensions.items() if k in choices}
    assert set(params) == {name for k in asked for name in distributions(searched.dimensions[k])}
    if len(params) > len(asked):  # a genome, of which one gene is missing
        params.popitem()
        assert decode(searched, params) is None


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_any_values_that_optuna_draws_are_a_candidate(block):
    searched = space(neck=block)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        choices = suggest(searched, trial)
        assert searched.contains(choices)
        assert decode(searched, trial.params) == choices
        assert searched.to_graph(choices, FEATURES).outputs


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_neighbours_are_in_the_space(block):
    searched = space(neck=block)
    rng = random.Random(0)
    choices = next(c for c in iter(lambda: searched.sample(rng), None) if "cell" in c or "dag" in c)
    around = list(searched.neighbours(choices, rng))
    assert choices not in around
    assert all(searched.contains(c) for c in around)
    assert len({choices_key(c) for c in around}) > 10


def test_a_small_free_space_can_be_listed_and_walked():
    searched = space(neck=FEW)
    listed = {choices_key(c) for c in searched.enumerate()}
    assert listed == {choices_key({"dag": dag}) for dag in ("TD", "TD; TD none", "TD; none TD", "TD; TD TD")}
    assert searched.size == 4
    queue = [{"dag": "TD"}]
    for choices in queue:
        queue += [c for c in searched.neighbours(choices, random.Random(0)) if c not in queue]
    assert {choices_key(c) for c in queue} == listed


def test_sizes_multiply():
    cells = space(neck=CELLS)
    assert cells.size == 2 * 3 * 3_017_710_080_000_000 + 2 * 3
    assert str(cells.size) in repr(cells)
    huge = space(neck={**CELLS, "cell": {**CELLS["cell"], "nodes": 120}})
    assert huge.size > 10**308  # no float could hold it
    assert huge.contains(huge.sample(random.Random(0)))


def test_the_published_genome_is_asked_first():
    for block, key in ((CELLS, "cell"), (DAGS, "dag")):
        searched = space(neck={**block, key: {k: v for k, v in block[key].items() if k not in ("when", "nodes")}})
        (published,) = [e for e in searched.enqueued() if key in e.choices]
        assert published.inside
        chosen = searched.settings(published.choices)
        without = {k: v for k, v in chosen.items() if k not in (key, "family")}
        by_default = create_graph(chosen["family"], FEATURES, **without)
        assert searched.to_graph(published.choices, FEATURES).id == by_default.id
        assert decode(searched, encode(searched, published.choices)) == published.choices


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_search_spends_its_budget_on_different_genomes(tmp_path, kind, block):
    sampler = {"kind": kind, **({"population": 6} if kind == "nsga2" else {})}
    searched = space(neck=block, sampler=sampler, budget={"trials": 20}, constraints=["params <= 4e6"])
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert (result.status, result.paid) == ("finished", 20)
    assert len(evaluator.trained) == len(set(evaluator.trained)) == 20
    table = study.table()
    assert not (table.status == "failed").any()
    again = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=22)[1]
    assert again.paid == 22
    assert len(set(evaluator.trained)) == 22


@pytest.mark.parametrize("block", [{**CELLS, "family": "merging_cells"}, CELLS, DAGS], ids=["always", "family", "when"])
def test_nsga2_breeds_genomes_also_where_not_every_parent_has_one(block):
    searched = space(neck=block, sampler={"kind": "nsga2", "population": 10})
    study = optuna.create_study(direction="maximize", sampler=create_sampler(searched, trials=300, seed=0))
    genes = {name for d in searched.dimensions.values() if isinstance(d, FreeDimension) for name in distributions(d)}
    shares = []
    for _ in range(300):
        trial = study.ask()
        suggest(searched, trial)
        first = [value == trial.distributions[k].choices[0] for k, value in trial.params.items() if k in genes]
        study.tell(trial, sum(first))  # how many genes have the first of their values
        shares += [sum(first) / len(genes)] if first else []
    assert sum(shares[:10]) / 10 < 0.35  # as at random
    assert sum(shares[-10:]) / 10 > 0.5


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from search_evaluator import PROTOCOL, InstantEvaluator, space
from fpn_bench.search import run_study

class Killed(InstantEvaluator):
    def train(self, described, seed, epochs, on_progress):
        if len(self.trained) >= 12 and " {key}=" in described.label:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(described, seed, epochs, on_progress)

searched = space(**{changes!r})
run_study(searched, Killed(searched), PROTOCOL, {folder!r})
"""


@pytest.mark.parametrize(
    ("block", "key"),
    [pytest.param(CELLS, "cell", marks=pytest.mark.slow), (DAGS, "dag")],
    ids=BLOCKS,
)
def test_a_killed_search_goes_on_with_its_genes(tmp_path, block, key):
    folder = tmp_path / "s"
    changes = {"neck": block, "sampler": {"kind": "nsga2", "population": 4}, "budget": {"trials": 30}}
    script = KILLED.format(here=str(Path(__file__).parents[1]), changes=changes, key=key, folder=str(folder))
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    before = load_study(folder)
    cut = before._trials_store.changes()[-1]
    finished = {row["candidate"] for row in before.rows()}
    told = [t.params for t in before._study.trials]
    assert cut.state == RUNNING

    searched = Space.load(folder / "space.yaml")
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, folder)
    assert (result.status, result.paid) == ("finished", 30)
    assert len(set(evaluator.trained)) == len(evaluator.trained)
    assert not finished & set(evaluator.trained)
    rows = {row["trial"]: row for row in study.rows()}
    assert [t.params for t in study._study.trials[: len(told)]] == told
    for trial in study._study.trials:
        assert not trial.params or decode(searched, trial.params) == rows[trial.user_attrs["trial"]]["choices"]
    genome = cut.request.choices[key]
    statuses = [row["status"] for row in rows.values() if row["choices"].get(key) == genome]
    assert statuses[:2] == ["continued", "complete"]


def test_a_small_free_space_is_searched_to_the_end(tmp_path):
    searched = space(neck=FEW, enqueue="none", budget={"trials": 30})
    evaluator = InstantEvaluator(searched)
    _, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.status == "exhausted"
    assert len(set(evaluator.trained)) == searched.size


def test_a_free_space_of_one_genome(tmp_path):
    one = {**FEW, "dag": {"free": "pyramid_dags", "nodes": 1, "paths": ["TD"]}, "channels": {"choices": [32, 48]}}
    for kind in ("nsga2", "tpe"):
        searched = space(neck=one, enqueue="none", budget={"trials": 9}, sampler={"kind": kind})
        assert searched.size == 2
        assert run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / kind)[1].status == "exhausted"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": {"freee": "merging_cells"}}, "neck.cell: unknown key 'freee': did you mean 'free'?"),
        ({"cell": {"free": "merging_cell"}}, "neck.cell.free: unknown free space 'merging_cell': did you mean"),
        ({"cell": {"free": 3}}, "neck.cell.free: unknown free space '3'"),
        ({"repeats": {"free": "merging_cells", "levels": [3, 4]}}, "repeats: expected `free: merging_cells` under"),
        ({"cell": {"free": "merging_cells"}}, "neck.cell.levels: expected a value, got nothing"),
        ({"cell": {"free": "merging_cells", "levels": [3, 4], "node": 3}}, "unknown key 'node': did you mean 'nodes'?"),
        ({"cell": {"free": "merging_cells", "levels": [3, 4], "range": [1, 2]}}, "got `range:` and `free:`"),
        ({"cell": {"free": "merging_cells", "levels": [3, 4], "nodes": True}}, "neck.cell.nodes:"),
        ({"cell": {"free": "merging_cells", "levels": [3, 4], "nodes": "7"}}, "neck.cell.nodes:"),
        ({"cell": {"free": "merging_cells", "levels": [True, 2]}}, "neck.cell.levels[0]:"),
        ({"cell": {"free": "merging_cells", "levels": [3, 5]}}, "contiguous levels, got [3, 5]"),
        ({"cell": {"free": "merging_cells", "levels": [3, 4], "nodes": 1}}, "neck.cell: expected nodes to be"),
        ({"cell": {"free": "merging_cells", "levels": [3, 4], "ops": ["sun"]}}, "neck.cell.ops[0]:"),
        ({"cell": {"free": "merging_cells", "levels": [3, 4], "when": {"family": "x"}}}, "can never hold"),
        ({"channels": {"choices": [32], "when": {"cell": "x"}}}, "'cell' is free; no condition can read it"),
    ],
)
def test_what_a_free_key_cannot_say_is_one_clear_line(changes, message):
    with pytest.raises(SpaceError) as error:
        space(neck={**CELLS, **changes})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_check_finds_a_cell_of_other_levels():
    with pytest.raises(SpaceError, match=r"no choice set can be built.* merged levels, P3-P6, got one over P3-P7"):
        space(neck={**CELLS, "family": "merging_cells", "out_levels": [3, 4, 5, 6]}).check()
    space(neck=CELLS).check()


def test_the_fingerprint_is_of_the_free_space_not_of_its_spelling():
    spelled_out = {**CELLS["cell"], "nodes": 7, "ops": ["sum", "gate"], "inner_levels": []}
    assert space(neck={**CELLS, "cell": spelled_out}).fingerprint == space(neck=CELLS).fingerprint
    sometimes = {**CELLS["cell"], "when": {"channels": 32}}
    assert space(neck={**CELLS, "cell": sometimes}).fingerprint != space(neck=CELLS).fingerprint
    other = {**CELLS, "cell": {**CELLS["cell"], "nodes": 6}}
    assert space(neck=CELLS).fingerprint != space(neck=other).fingerprint
    assert isinstance(space(neck=CELLS).to_graph(space(neck=CELLS).sample(random.Random(1)), FEATURES), NeckGraph)
