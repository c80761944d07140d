"""A path and a merge operation from outside the package: everything reads them, and a part left out is an error."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from fpn_bench import build_neck
from fpn_bench.errors import ExportError, GraphError, InputError
from fpn_bench.export.bundle import Bundle
from fpn_bench.export.checks import imported
from fpn_bench.export.source import write_neck
from fpn_bench.graph import (
    MERGES,
    OPS,
    Conv,
    Edge,
    MergeOp,
    NeckGraph,
    Node,
    Op,
    Resample,
    as_svg,
    as_text,
    cost,
    register,
)
from fpn_bench.latency.units import neck_units
from fpn_bench.nn import BUILDERS, builds, make_layer
from fpn_bench.pyramid import FeatureSpec

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "operation.md"
FEATURES = (FeatureSpec(3, 4, 8), FeatureSpec(4, 6, 16))
SIZES = {3: (6, 10), 4: (3, 5)}


@dataclass(frozen=True, slots=True)
class Difference(MergeOp):
    """The first map less `factor` times the second."""

    factor: float = 1.0
    note: str = ""

    op_type: ClassVar[str] = "difference"
    learns: ClassVar[bool] = False
    symbol: ClassVar[str] = "minus"
    commutes: ClassVar[bool] = False
    is_identity_of_one: ClassVar[bool] = False
    idle_fields: ClassVar[tuple[str, ...]] = ("note",)

    def validate(self, widths):
        return None if len(widths) == 2 and widths[0] == widths[1] else "merges maps of unequal channels by difference"

    def out_width(self, widths):
        return widths[0]

    def cost(self, widths, size):
        return 0, widths[0] * size[0] * size[1]


class Minus(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, maps):
        return maps[0] - self.factor * maps[1]

    def expression(self, maps):
        return f"{maps[0]} - {self.factor} * {maps[1]}"


@pytest.fixture
def registries():
    """What is registered in a test is gone after it."""
    before = [(registry, registry.copy()) for registry in (OPS, MERGES, BUILDERS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.fixture
def layer_scale(registries, tmp_path, monkeypatch):
    """The operation of the page, as the file that the page says it is."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "page_layer_scale.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "page_layer_scale", raising=False)
    return importlib.import_module("page_layer_scale")


def neck_with(scale, merge, behind=()):
    edge = Edge("C4", (Conv(4, 1), scale, Resample("nearest")))
    return NeckGraph(FEATURES, (Node("out", 3, (Edge("C3"), edge), merge, behind),), ("out",))


def test_operations_from_outside_do_all_that_others_do(layer_scale, tmp_path):
    register(Difference)
    builds(Difference)(lambda merge, widths: Minus(merge.factor))
    graph = neck_with(layer_scale.LayerScale(0.5), Difference(3), behind=(layer_scale.LayerScale(),))

    neck, maps = build_neck(graph), [torch.randn(2, s.channels, *SIZES[s.level]) for s in FEATURES]
    conv, scale, _ = neck.steps["out"].paths[1].ops
    assert scale.weight.flatten().tolist() == [0.5] * 4
    nn.init.normal_(scale.weight)
    lifted = (conv(maps[1]) * scale.weight).repeat_interleave(2, 2).repeat_interleave(2, 3)
    (made,) = neck(maps)
    torch.testing.assert_close(made, maps[0] - 3.0 * lifted)

    paid = cost(graph, input_sizes=SIZES)
    assert paid.params == sum(p.numel() for p in neck.parameters()) == 6 * 4 + 4 + 4 + 4
    assert paid.macs == 6 * 4 * 15 + 4 * 60

    assert NeckGraph.from_json(graph.to_json()) == graph
    assert NeckGraph.from_json(graph.to_json()).id == graph.id
    others = [
        neck_with(layer_scale.LayerScale(0.25), Difference(3), graph.nodes[0].ops),
        neck_with(layer_scale.LayerScale(0.5), Difference(2), graph.nodes[0].ops),
        neck_with(layer_scale.LayerScale(0.5), Difference(3)),
        NeckGraph(FEATURES, (dataclasses.replace(graph.nodes[0], inputs=graph.nodes[0].inputs[::-1]),), ("out",)),
    ]
    assert len({graph.id, *(other.id for other in others)}) == 5
    assert neck_with(layer_scale.LayerScale(0.5), Difference(3, "idle"), graph.nodes[0].ops).id == graph.id

    assert "C3 minus (C4 > 1x1 scale nearest) => scale" in as_text(graph)
    assert "minus scale" in "".join(ElementTree.fromstring(as_svg(graph)).itertext())

    (unit,) = neck_units(graph, SIZES).values()
    assert unit.macs == paid.macs
    assert unit.work["layer_scale"] == (2, 2 * 4 * 15 + 2 * 4 * 60)
    assert unit.work["difference"] == (1, 3 * 4 * 60)

    bundle = Bundle()
    state = write_neck(neck, bundle)
    (tmp_path / "neck.py").write_text("from __future__ import annotations\n\n" + bundle.text())
    text = imported(tmp_path / "neck.py")
    assert "fpn_bench" not in bundle.text()
    assert "class Scale(nn.Module)" in bundle.text()
    written = text.Neck()
    assert [p.shape for p in written.parameters()] == [p.shape for p in state.values()]
    written.load_state_dict(state)
    torch.testing.assert_close(written(maps)[0], made)


def test_what_was_removed_is_unknown_again(layer_scale):
    graph = NeckGraph(FEATURES, (Node("out", 3, (Edge("C3"),), ops=(layer_scale.LayerScale(),)),), ("out",))
    text = graph.to_json()
    del OPS["layer_scale"]
    with pytest.raises(GraphError, match="unknown op 'layer_scale'"):
        NeckGraph.from_json(text)
    with pytest.raises(GraphError, match="as an operation"):
        NeckGraph(FEATURES, graph.nodes, ("out",))


def complete(base):
    """Every part of an operation, by name."""
    return {
        "op_type": "complete",
        "learns": False,
        "symbol": "c",
        "idle_fields": (),
        **({"levels_moved": 0} if base is Op else {"commutes": True, "is_identity_of_one": True}),
        **{name: lambda self, *given: None for name in ("validate", "out_width", "cost")},
    }


@pytest.mark.parametrize("base", [Op, MergeOp])
def test_a_part_left_out_is_an_error_at_registration(base, registries):
    parts = complete(base)
    assert set(parts) == {*base.__abstractmethods__, "op_type"}
    before = OPS | MERGES
    for left_out in parts:
        cls = type("Partial", (base,), {name: part for name, part in parts.items() if name != left_out})
        with pytest.raises(InputError, match=rf"Partial .*it lacks {left_out}$"):
            register(dataclass(frozen=True, slots=True)(cls))
    assert before == OPS | MERGES
    whole = register(dataclass(frozen=True, slots=True)(type("Whole", (base,), parts)))
    assert before | {"complete": whole} == OPS | MERGES


def test_what_cannot_be_an_operation_is_refused(registries):
    parts = complete(Op)
    with pytest.raises(InputError, match="frozen dataclass"):
        register(dataclass(type("Thawed", (Op,), parts)))
    with pytest.raises(InputError, match="frozen dataclass"):
        register(type("Plain", (Op,), parts))
    listed = type("Listed", (Op,), {**parts, "__annotations__": {"sizes": "list[int]"}})
    with pytest.raises(InputError, match=r"Listed\.sizes to be an int"):
        register(dataclass(frozen=True)(listed))
    with pytest.raises(InputError, match="'conv', which is taken"):
        register(dataclass(frozen=True)(type("Second", (Op,), {**parts, "op_type": "conv"})))
    with pytest.raises(InputError, match="one builder of Conv"):
        builds(Conv)(lambda op, channels, levels: nn.Identity())


def test_every_operation_has_a_builder():
    assert set(BUILDERS) == {*OPS.values(), *MERGES.values()}


def test_a_missing_builder_is_named(layer_scale):
    del BUILDERS[layer_scale.LayerScale]
    graph = NeckGraph(FEATURES, (Node("out", 3, (Edge("C3"),), ops=(layer_scale.LayerScale(),)),), ("out",))
    with pytest.raises(InputError, match=r"'layer_scale', found none; write one with @builds\(LayerScale\)"):
        build_neck(graph)


def test_a_layer_that_cannot_be_written_is_no_silent_wrong_text(layer_scale):
    BUILDERS[layer_scale.LayerScale] = lambda op, channels, levels: layer_scale.Scale(channels, op.initial)
    graph = NeckGraph(FEATURES, (Node("out", 3, (Edge("C3"),), ops=(layer_scale.LayerScale(),)),), ("out",))
    with pytest.raises(ExportError, match=r"Scale .*make_layer"):
        write_neck(build_neck(graph), Bundle())


def test_arguments_are_the_text_of_the_call():
    assert make_layer(nn.Conv2d, 3, 8, kernel_size=1, padding_mode="zeros").arguments == (
        '3, 8, kernel_size=1, padding_mode="zeros"'
    )
