"""The names people type, held to what the documentation promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fpn_bench as fb


@pytest.mark.parametrize("name", [n for n in fb.__all__ if n != "__version__"])
def test_every_public_name_is_there_and_documented(name):
    assert (getattr(fb, name).__doc__ or "").strip(), name


def test_packages_do_not_take_the_place_of_functions_of_their_name():
    code = "import fpn_bench.search, fpn_bench as fb; assert callable(fb.search) and callable(fb.assess)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="serach"):
        fb.serach  # noqa: B018


def test_the_example_of_the_package_runs():
    backbone = fb.create_backbone("resnet18", levels=(3, 4, 5), pretrained=False)
    graph = fb.create_graph("fpn", backbone.features, out_levels=(3, 4, 5, 6), channels=16)
    assert fb.NeckGraph.from_dict(graph.to_dict()).id == graph.id
    neck = fb.build_neck(graph, backbone.features)
    result = fb.profile(backbone, neck, image_size=(65, 97), device="cpu", budget_s=0.05, verify=True)
    data = result.to_dict()
    assert (data["schema_version"], data["status"]) == (2, "ok")
    static = data["static"]
    assert static["macs"] == result.fvcore.macs == sum(part["macs"] for part in static["parts"].values())
    assert static["parts"]["neck"]["params"] == fb.cost(graph, (65, 97)).params
    assert data["latency"]["median_ms"] > 0


@pytest.mark.parametrize(
    ("before", "now"), [("Workbench", "EvaluationContext"), ("found", "load_candidate"), ("train_found", "train_full")]
)
def test_names_of_before_still_work_and_say_their_new_one(before, now):
    with pytest.warns(DeprecationWarning, match=f"fpn_bench.{before} is now called fpn_bench.{now}"):
        value = getattr(fb, before)
    assert value is getattr(fb, now)
