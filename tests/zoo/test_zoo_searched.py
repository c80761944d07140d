"""The necks that searches found for P3 to P7 and P3 to P6: NAS-FPN and MnasFPN."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fpn_bench.errors import InputError
from fpn_bench.graph import Activation, Conv, NeckGraph, Resample, cost
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph

RESNET = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 512), (4, 1024), (5, 2048)))
SMALL = tuple(FeatureSpec(k, 8, 2**k) for k in (3, 4, 5, 6, 7))
P3_P7 = (3, 4, 5, 6, 7)


def reads(graph: NeckGraph, name: str) -> set[str]:
    return {edge.source for node in graph.nodes if node.name == name for edge in node.inputs}


# -- NAS-FPN -----------------------------------------------------------------------------------------------------

MMDET = {"gate": "finer_avg", "extra_lateral": "conv_max_pool"}


def test_nas_fpn_of_mmdet_has_its_published_figures():
    costs = cost(create_graph("nas_fpn", RESNET, P3_P7, 256, **MMDET), (640, 640))
    assert costs.params == 29_990_144
    assert costs.macs == pytest.approx(49.911e9, rel=1e-3)


@pytest.mark.parametrize(("channels", "repeats"), [(256, 5), (384, 7), (64, 1)])
def test_nas_fpn_of_other_sizes_has_the_closed_form(channels, repeats):
    c = channels
    node = 9 * c * c + c + 2 * c  # a 3x3 with a bias, and its norm
    laterals = sum(s.channels * c + 2 * c for s in RESNET)
    tensorflow = create_graph("nas_fpn", RESNET, P3_P7, channels, repeats=repeats)
    assert cost(tensorflow, (64, 64)).params == repeats * 7 * node + laterals
    mmdet = create_graph("nas_fpn", RESNET, P3_P7, channels, repeats=repeats, **MMDET)
    assert cost(mmdet, (64, 64)).params == repeats * 7 * node + laterals + 2 * (c * c + 2 * c)


def test_nas_fpn_takes_up_what_no_node_has_read():
    graph = create_graph("nas_fpn", RESNET, P3_P7, 16, repeats=1, sum_only=True)
    assert reads(graph, "cell1_5") == {"lateral4", "lateral6"}
    assert reads(graph, "cell1_6") == {"lateral4", "cell1_5"}
    assert reads(graph, "P3") == {"lateral3", "cell1_6"}
    assert reads(graph, "P4") == {"cell1_6", "P3"}
    assert reads(graph, "P5") == {"P3", "P4", "lateral5"}
    assert reads(graph, "P7") == {"P5", "cell1_6", "lateral7"}
    assert reads(graph, "P6") == {"P7", "P5"}


@pytest.mark.parametrize("gate", ["coarser_max", "finer_avg"])
def test_the_gates_are_those_of_the_two_codes(gate):
    """The first node, of P4 and P6, by hand; identity convolutions in front, behind and beside it."""
    graph = create_graph(
        "nas_fpn", SMALL, P3_P7, 8, repeats=1, gate=gate, norm="none", activation="none", sum_only=False
    )
    neck = build_neck(graph).eval()
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.zero_()
            if parameter.ndim == 4:
                middle = parameter.shape[-1] // 2
                parameter[:, :, middle, middle] = torch.eye(8)
    maps = [torch.randn(2, 8, 32 >> i, 32 >> i) for i in range(5)]
    finer, coarser = maps[1], F.interpolate(maps[3], size=(16, 16))
    if gate == "coarser_max":
        first = coarser + finer * maps[3].amax((2, 3), keepdim=True).sigmoid()
    else:
        first = finer + coarser * finer.mean((2, 3), keepdim=True).sigmoid()
    second = maps[1] + first
    expected = maps[0] + F.interpolate(second, scale_factor=2.0)
    torch.testing.assert_close(neck(maps)[0], expected)


# -- MnasFPN -----------------------------------------------------------------------------------------------------


def mnas_cell_params(widths: dict[int, int], channels: int) -> int:
    """Of the published cell, from its table: an edge has a 1x1 and a norm, a node a separable conv and a norm."""
    table = [(4, (4, 5), 3, 256), (3, (3, 0), 3, 128), (4, (0, 0), 3, 128), (5, (0, 6), 5, 128), (6, (0, 6), 3, 96)]
    total = 0
    for _, inputs, kernel, expansion in table:
        for level in inputs:  # level 0 is a node of the cell
            total += (channels if level == 0 else widths[level]) * expansion + 2 * expansion
        total += kernel**2 * expansion + expansion * channels + 2 * channels
    return total


@pytest.mark.parametrize("repeats", [1, 4])
def test_mnas_fpn_has_the_params_of_its_table(repeats):
    features = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 32), (4, 96), (5, 320)))
    extra = 320 * 48 + 2 * 48
    first = mnas_cell_params({3: 32, 4: 96, 5: 320, 6: 48}, 48)
    later = mnas_cell_params(dict.fromkeys((3, 4, 5, 6), 48), 48)
    graph = create_graph("mnas_fpn", features, (3, 4, 5, 6), 48, repeats=repeats)
    assert cost(graph, (320, 320)).params == extra + first + (repeats - 1) * later


def test_mnas_fpn_reduces_where_the_map_is_smaller():
    graph = create_graph("mnas_fpn", SMALL[:3], (3, 4, 5, 6), 48, repeats=1)
    (inner,) = [node for node in graph.nodes if node.name == "cell1_inner"]
    assert [isinstance(edge.ops[0], Conv) for edge in inner.inputs] == [True, True]
    (coarse,) = [node for node in graph.nodes if node.name == "cell1_out6"]
    assert [type(op).__name__ for op in coarse.inputs[0].ops] == ["Resample", "Conv", "Norm"]
    (fine,) = [node for node in graph.nodes if node.name == "cell1_out3"]
    assert [type(op).__name__ for op in fine.inputs[1].ops] == ["Conv", "Norm", "Resample"]


def test_mnas_fpn_adds_a_cells_input_only_where_widths_are_equal():
    graph = create_graph("mnas_fpn", SMALL[:3], (3, 4, 5, 6), 48, repeats=2)
    added = {node.name for node in graph.nodes if "residual" in node.name}
    assert added == {"cell1_residual6", *(f"cell2_residual{k}" for k in (3, 4, 5, 6))}
    without = create_graph("mnas_fpn", SMALL[:3], (3, 4, 5, 6), 48, repeats=2, residual=False)
    assert not any("residual" in node.name for node in without.nodes)


@pytest.mark.parametrize("up", ["nearest", "bilinear"])
def test_mnas_fpn_takes_other_operations(up):
    graph = create_graph("mnas_fpn", SMALL[:3], (3, 4, 5), 48, activation="silu", separable=False, up=up, repeats=1)
    blocks = [node for node in graph.nodes if node.name.startswith(("cell1_inner", "cell1_out"))]
    assert {node.ops[0] for node in blocks} == {Activation("silu")}
    assert not any(node.ops[1].separable for node in blocks)
    assert {op.kind for node in graph.nodes for e in node.inputs for op in e.ops if isinstance(op, Resample)} == {
        up,
        "max_pool",
    }


@pytest.mark.parametrize("name", ["nas_fpn", "mnas_fpn"])
def test_one_level_is_refused(name):
    with pytest.raises(InputError, match="at least two"):
        create_graph(name, SMALL[2:3], (5,), 16)
