"""The free spaces: their genomes are valid however they are made, and say what they mean."""

from __future__ import annotations

import copy
import itertools
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fpn_bench.errors import InputError
from fpn_bench.graph import Conv, GraphBuilder, NeckGraph, cost
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph
from fpn_bench.zoo.merging_cells import CELL_OPS, MergingCell, MergingCells, add_cell, nas_fpn_cell, parse_cell
from fpn_bench.zoo.pyramid_dags import PyramidDags

FEATURES = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 24), (4, 32), (5, 48)))
RESNET50 = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 512), (4, 1024), (5, 2048)))
NAS_FPN = "P3-P7 P4=gate(1,3) P4=sum(1,5) P3=sum(0,6) P4=sum(6,7) P5=gate(7,8) P7=gate(6,9) P6=gate(9,10)"
SPACES = [
    MergingCells((3, 4, 5, 6, 7)),
    MergingCells((3, 4, 5), nodes=3, ops=CELL_OPS),
    MergingCells((3, 4, 5, 6), nodes=9, ops=("sum",), inner_levels=(4, 6)),
    PyramidDags(),
    PyramidDags(3, ("none", "TD", "SE")),
    PyramidDags(2, ("skip", "BU", "FS")),
]
FAMILIES = {"cell": "merging_cells", "dag": "opa_fpn"}
SMALL = [
    MergingCells((3, 4), nodes=2, ops=("sum", "gate")),
    MergingCells((3, 4), nodes=3, ops=("max",)),
    PyramidDags(2, ("none", "skip", "TD")),
    PyramidDags(3, ("none", "BU")),
    PyramidDags(2, ("TD", "BU")),
]


def graph_of(space, genome, **options) -> NeckGraph:
    levels = getattr(space, "levels", (3, 4, 5))
    return create_graph(FAMILIES[space.option], FEATURES, levels, 16, **{space.option: space.text(genome)}, **options)


# -- one protocol -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES, ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_samples_mutants_and_children_are_genomes_of_the_space(space, seed):
    rng = random.Random(seed)
    a, b = space.sample(rng), space.sample(rng)
    mutant, child = space.mutate(a, rng), space.crossover(a, b, rng)
    assert mutant != a
    for genome in (a, b, mutant, child, space.published):
        text = space.text(genome)
        assert space.parse(text) == genome
        assert space.has(text)
        assert space.compose(space.decompose(genome)) == genome
        assert graph_of(space, genome).reachable


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_making_genomes_is_pure(space):
    a, b = space.sample(random.Random(1)), space.sample(random.Random(2))
    before = copy.deepcopy((a, b))
    for make in (
        lambda rng: space.sample(rng),
        lambda rng: space.mutate(a, rng),
        lambda rng: space.crossover(a, b, rng),
        lambda rng: list(space.neighbours(a)),
    ):
        assert make(random.Random(3)) == make(random.Random(3))
    assert (a, b) == before


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_mutant_is_one_gene_away_and_a_child_has_its_parents_genes(space):
    rng = random.Random(0)
    for _ in range(20):
        a, b = space.sample(rng), space.sample(rng)
        assert space.mutate(a, rng) in set(space.neighbours(a))
        assert space.crossover(a, a, rng) == a
        genes = [space.decompose(g) for g in (a, b, space.crossover(a, b, rng))]
        if isinstance(space, MergingCells):  # elsewhere, a path may go with the pyramid it led to
            assert all(genes[2][name] in (genes[0][name], genes[1][name]) for name in space.genes)


@pytest.mark.parametrize("space", SMALL, ids=str)
def test_size_counts_what_genes_make_and_neighbours_reach_all(space):
    made = {space.compose(dict(zip(space.genes, v, strict=True))) for v in itertools.product(*space.genes.values())}
    listed = list(space.enumerate())
    assert len(set(listed)) == len(listed) == space.size
    assert set(listed) == made
    queue = [space.published]
    for genome in queue:
        queue += [g for g in space.neighbours(genome) if g not in queue]
    assert set(queue) == made


def test_the_only_genome_has_no_mutant():
    space = PyramidDags(1, ("none", "TD"))
    assert space.size == 1
    assert space.mutate(space.published, random.Random(0)) == space.published
    assert not list(space.neighbours(space.published))


def test_sizes_of_the_published_spaces():
    assert MergingCells((3, 4, 5, 6, 7), inner_levels=(4, 5, 6, 7)).size == 1_931_334_451_200_000  # Google's 1.9e15
    assert PyramidDags(5, PyramidDags().paths[1:]).size == 5**15
    assert PyramidDags().size < 6**15  # a pyramid without a path is left out


def test_the_published_genome_is_fitted_to_the_space():
    assert MergingCells.text(MergingCells((3, 4, 5, 6, 7)).published) == NAS_FPN
    sums = MergingCells((3, 4, 5, 6, 7), nodes=5, ops=("sum", "max")).published
    assert str(sums) == "P3-P7 P3=sum(0,1) P4=sum(1,5) P5=sum(5,6) P7=sum(1,7) P6=sum(7,8)"
    assert PyramidDags.text(PyramidDags(3, ("none", "TD")).published) == "TD; TD TD"
    assert PyramidDags.text(PyramidDags().published) == "TD; TD TD; FS none skip; BU skip none TD; BU none FS SE BU"


@pytest.mark.parametrize("count", range(2, 8))
@pytest.mark.parametrize("inner", range(4))
def test_the_published_cell_fits_any_levels(count, inner):
    cell = nas_fpn_cell(range(2, 2 + count), inner)
    assert len(cell.nodes) == count + inner
    assert parse_cell(str(cell)) == cell


def test_random_cells_are_distinct_networks():
    space = MergingCells((3, 4, 5, 6, 7))
    rng = random.Random(0)
    assert len({graph_of(space, space.sample(rng), repeats=1).id for _ in range(200)}) >= 0.95 * 200


@pytest.mark.slow
def test_ten_thousand_random_cells_in_twenty_seconds_without_torch():
    script = Path(__file__).parents[2] / "benchmarks" / "free_cells.py"
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert float(re.search(r"([\d.]+)% distinct", said)[1]) >= 95
    assert float(re.search(r"total +([\d.]+) s", said)[1]) < 20
    assert "torch imported: False" in said


# -- the text of a cell -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a cell to begin with its levels, .* got ''"),
        ("P4=sum(0,1)", r"begin with its levels, e.g. P3-P7, got 'P4=sum\(0,1\)'"),
        (7, "begin with its levels, .* got '7'"),
        ("P3-P3 P3=sum(0,1)", "a finest and a coarser level, e.g. P3-P7, got 'P3-P3'"),
        ("P5-P3 P3=sum(0,1)", "a finest and a coarser level, e.g. P3-P7, got 'P5-P3'"),
        ("P0-P999999999 P3=sum(0,1)", "expected at least 1000000000 nodes in .*, one output for each level, got 1"),
        ("P0-P9999999999 P3=sum(0,1)", "begin with its levels"),
        ("P3-P4 P3=sum(0,1) P4=sum(1;2)", r"node 3: expected LEVEL=OP\(INPUT,INPUT\), .* got 'P4=sum\(1;2\)'"),
        ("P3-P4 P3=sum(0,1)  P4=sum(1,2)", "node 3: .* got ''"),
        ("P3-P4 P3=sum(0,1) P4=sum(1,02)", "node 3"),
        ("P3-P4 P3=sum(0,1) P4=som(1,2)", r"node 3, P4=som\(1,2\): expected one of sum, gate.* got operation 'som'"),
        ("P3-P4 P5=sum(0,1) P4=sum(1,2)", r"node 2, P5=sum\(0,1\): expected a level of P3-P4, got level 5"),
        ("P3-P4 P3=sum(0,1) P4=sum(1,3)", "node 3, .* two ascending numbers of earlier maps, 0 to 2, got inputs 1,3"),
        ("P3-P4 P3=sum(1,0) P4=sum(1,2)", "node 2, .* two ascending .* got inputs 1,0"),
        ("P3-P4 P3=sum(1,1) P4=sum(1,2)", "got inputs 1,1"),
        ("P3-P4 P3=sum(0,1)", "at least 2 nodes in a cell over P3-P4, one output for each level, got 1"),
        ("P3-P4", "at least 2 nodes in a cell over P3-P4, .* got 0"),
        ("P3-P4 P4=sum(0,1) P3=sum(0,1) P3=sum(1,2)", "one node of each level as the cell's last 2, got P3 P3"),
    ],
)
def test_what_is_wrong_with_a_cell_is_named(text, message):
    with pytest.raises(InputError, match=message):
        parse_cell(text)


def test_a_cell_must_fit_the_levels_at_hand():
    with pytest.raises(InputError, match=r"expected a cell over all merged levels, P3-P6, got one over P3-P7"):
        create_graph("merging_cells", FEATURES, (3, 4, 5, 6), 16, cell=NAS_FPN)
    with pytest.raises(InputError, match=r"at least two levels .* got P5 only"):
        create_graph("merging_cells", FEATURES, (5,), 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MergingCells((3,)), "two or more"),
        (lambda: MergingCells(3), "expected levels to be a list of whole numbers, got 3"),
        (lambda: MergingCells((3.0, 4.0)), r"levels to be a list of whole numbers, got \(3.0, 4.0\)"),
        (lambda: MergingCells((False, True)), "a list of whole numbers"),
        (lambda: MergingCells((3, 4), inner_levels=3), "inner_levels to be a list of whole numbers, got 3"),
        (lambda: MergingCells((3, 4), ops="sum"), "ops to be a list of some of sum, gate, max, .* got 'sum'"),
        (lambda: PyramidDags(2, "TD"), "paths to be a list of some of none, skip, .* got 'TD'"),
        (lambda: PyramidDags(2, ("TD", "TD")), r"paths to name each once, got \['TD', 'TD'\]"),
        (lambda: MergingCells((3, 4, 5), nodes=2), "whole number of at least 3, one for each level, got 2"),
        (lambda: MergingCells((3, 4), ops=("sum", "sum")), "each once"),
        (lambda: MergingCells((3, 4), ops=()), "expected at least one of sum, gate, max, .* in ops"),
        (lambda: MergingCells((3, 4), ops=("some",)), "did you mean 'sum'"),
        (lambda: MergingCells((3, 4), inner_levels=(4, 3)), r"ascending levels of \[3, 4\], got \[4, 3\]"),
        (lambda: PyramidDags(0), "expected nodes .* got 0"),
        (lambda: PyramidDags(2, ("none",)), "at least one of paths to be other than none"),
        (lambda: PyramidDags(2, ("TD", "TU")), "did you mean 'TD'"),
    ],
)
def test_a_space_that_cannot_be_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_lists_do_for_tuples():
    cells = MergingCells([3, 4, 5], ops=["sum", "max"], inner_levels=range(4, 6))
    assert cells == MergingCells((3, 4, 5), ops=("sum", "max"), inner_levels=(4, 5))
    assert cells.contains(cells.sample(random.Random(0)))
    assert MergingCell([3, 4], list(nas_fpn_cell((3, 4)).nodes)) == nas_fpn_cell([3, 4])
    dags = PyramidDags(2, ["none", "TD"])
    assert dags == PyramidDags(2, ("none", "TD"))
    assert dags.contains(dags.sample(random.Random(0)))


@pytest.mark.parametrize(
    ("space", "stranger"),
    [
        (PyramidDags(2), PyramidDags(5).published),
        (PyramidDags(2), "TD; TD TD"),
        (PyramidDags(2), (("TD",), ("none", "none"))),
        (PyramidDags(2), [["TD"]]),
        (PyramidDags(2), 3),
        (MergingCells((3, 4, 5)), nas_fpn_cell((3, 4, 5), 3)),
        (MergingCells((3, 4, 5)), nas_fpn_cell((4, 5, 6), 4)),
        (MergingCells((3, 4, 5), ops=("sum",)), nas_fpn_cell((3, 4, 5), 4)),
        (MergingCells((3, 4, 5)), str(nas_fpn_cell((3, 4, 5), 4))),
    ],
)
def test_a_genome_of_another_space_is_refused(space, stranger):
    rng, own = random.Random(0), space.published
    assert not space.contains(stranger)
    for use in (
        lambda: space.decompose(stranger),
        lambda: space.mutate(stranger, rng),
        lambda: list(space.neighbours(stranger)),
        lambda: space.crossover(stranger, own, rng),
        lambda: space.crossover(own, stranger, rng),
    ):
        with pytest.raises(InputError, match=rf"expected a genome of {re.escape(str(space))}, got "):
            use()


# -- from the cell to nodes -------------------------------------------------------------------------------------


def test_nas_fpn_in_mmdets_form_has_the_published_figures():
    graph = create_graph(
        "merging_cells", RESNET50, (3, 4, 5, 6, 7), 256, repeats=7, gate="finer_avg", extra_lateral="conv_max_pool"
    )
    figures = cost(graph, (640, 640))
    convs = sum(isinstance(op, Conv) and op.kernel == 3 for node in graph.nodes for op in node.ops)
    assert figures.params + 256 * convs == 29_990_144  # mmdet's 3x3 convs have a bias before their norm layers
    assert figures.macs == pytest.approx(49.911e9, rel=1e-4)


def test_outputs_take_up_what_nothing_has_read():
    graph = create_graph("merging_cells", FEATURES, (3, 4, 5, 6, 7), 16, repeats=1)
    sources = {node.name: [edge.source for edge in node.inputs] for node in graph.nodes}
    taken_up = {name: {x for x in read if x.startswith("lateral")} for name, read in sources.items() if name[0] == "P"}
    assert taken_up["P5"] == {"lateral5"}
    assert taken_up["P7"] == {"lateral7"}
    assert taken_up["P4"] == taken_up["P6"] == set()
    assert graph.reachable >= {node.name for node in graph.nodes}


@pytest.mark.parametrize("gate", ["coarser_max", "finer_avg"])
@pytest.mark.parametrize("op", CELL_OPS)
def test_a_cell_computes_what_it_says(gate, op):
    """A slow loop over the genome, at sizes that halve exactly, where all resampling is unambiguous."""
    text = f"P3-P5 P4={op}(0,2) P4={op}(1,2) P5={op}(0,4) P3={op}(1,4) P4={op}(2,5)"
    features = tuple(FeatureSpec(k, 4, 2**k) for k in (3, 4, 5))
    b = GraphBuilder(features)
    cell = parse_cell(text)
    outputs = add_cell(b, cell, {k: f"C{k}" for k in (3, 4, 5)}, "cell", after=(), gate=gate, last=True)
    torch.manual_seed(0)
    neck = build_neck(b.graph(outputs[k] for k in (3, 4, 5))).eval()
    maps = [torch.randn(2, 4, 32 >> i, 16 >> i) for i in range(3)]
    known, levels, read = list(maps), [3, 4, 5], set()

    def moved(x, level, target):
        if target < level:
            return x.repeat_interleave(2 ** (level - target), -1).repeat_interleave(2 ** (level - target), -2)
        return functional.max_pool2d(x, 2 ** (target - level))

    for number, node in enumerate(cell.nodes, start=3):
        i, j = node.inputs
        x, y = moved(known[i], levels[i], node.level), moved(known[j], levels[j], node.level)
        name = {5: "P5", 6: "P3", 7: "P4"}.get(number, f"cell{number}")
        coarse, fine = (x, y) if levels[i] >= levels[j] else (y, x)
        read |= {i, j}
        unread = [k for k in range(number) if number >= 5 and levels[k] == node.level and k not in read]
        read |= set(unread)
        if op == "sum":
            merged = x + y
        elif op == "max":
            merged = torch.maximum(x, y)
        elif op == "fast_normalised":
            merged = (x + y) / (2 + 1e-4)
        elif op == "concat":
            step = neck.steps[f"{name}_merge" if unread else name]
            merged = step.after[0](torch.cat([x, y], 1))
        elif gate == "coarser_max":
            merged = coarse + fine * coarse.amax((2, 3), keepdim=True).sigmoid()
        else:
            merged = fine + coarse * fine.mean((2, 3), keepdim=True).sigmoid()
        known.append(merged + sum(known[k] for k in unread))
        levels.append(node.level)
    assert unread == [3]
    for spec, x in zip(features, neck(maps), strict=True):
        torch.testing.assert_close(x, known[{3: 6, 4: 7, 5: 5}[spec.level]])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_built_costs_are_those_of_the_closed_form(space):
    rng = random.Random(7)
    for _ in range(3):
        graph = graph_of(space, space.sample(rng))
        with torch.device("meta"):
            neck = build_neck(graph, FEATURES)
        assert sum(p.numel() for p in neck.parameters()) == cost(graph, (97, 65)).params
