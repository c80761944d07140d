"""Sample images: which, how they are kept, and that what is shown on them is what the evaluation found."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import torch
from PIL import Image
from search_evaluator import PROTOCOL, InstantEvaluator
from search_evaluator import space as made_up
from test_search_run import SPACE as TINY
from test_training_train import SIZE, DrawnMaps, run

from fpn_bench.data.dataset import DetectionDataset, ImageRecord
from fpn_bench.detection.samples import DETECTIONS, IMAGES, sample_detections, sample_images, sample_positions
from fpn_bench.search import Space, load_study, run_study
from fpn_bench.search.api import search
from fpn_bench.search.detectors import DetectorEvaluator, prepare
from fpn_bench.search.opening import SAMPLES

BOX = [10.0, 20.04, 200.26, 50.0]


def record(path, size=(60, 400), boxes=(BOX,), labels=(1,), crowd=(False,)) -> ImageRecord:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return ImageRecord(0, path, size, boxes, np.asarray(labels, np.int64), areas, np.asarray(crowd, np.bool_))


def drawn(path, size=(60, 400), **options) -> ImageRecord:
    Image.new("RGB", (size[1], size[0]), (200, 30, 30)).save(path, **options)
    return record(path, size)


def data_set(*records) -> DetectionDataset:
    return DetectionDataset("made up", ("cat", "dog"), {"train": (), "val": records}, "0" * 64)


# -- which images, and how they are kept ----------------------------------------------------------------------------


def test_images_are_spaced_evenly_among_those_with_something_to_find(tmp_path) -> None:
    shown = record(tmp_path)
    empty, crowd = record(tmp_path, boxes=(), labels=(), crowd=()), record(tmp_path, crowd=[True])
    assert sample_positions([shown] * 10) == [0, 3, 6, 9]
    assert sample_positions([empty, shown, crowd, shown, shown, empty]) == [1, 3, 4]
    assert sample_positions([empty] + [shown] * 4) == [1, 2, 3, 4]
    assert sample_positions([shown]) == [0]
    assert sample_positions([empty, crowd]) == sample_positions([]) == []


def test_an_image_is_kept_small_with_the_truth_in_pixels_of_the_file(tmp_path) -> None:
    both = record(tmp_path / "a.jpg", (100, 640), boxes=[BOX, [0, 0, 9, 9]], labels=[1, 0], crowd=[False, True])
    drawn(tmp_path / "a.jpg", (100, 640), comment=b"who took it, and where")
    small = drawn(tmp_path / "b.png", (90, 30))
    kept = sample_images(data_set(both, small))
    assert kept["classes"] == ["cat", "dog"]
    wide, high = kept["images"]
    assert (wide["position"], wide["name"], wide["width"], wide["height"]) == (0, "a.jpg", 640, 100)
    assert wide["truth"] == [[10.0, 20.0, 200.3, 50.0, 1]]
    assert json.loads(json.dumps(kept)) == kept
    for image, size in ((wide, (320, 50)), (high, (30, 90))):  # none is enlarged
        data = base64.b64decode(image["jpeg"])
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", size)
            red, green, blue = picture.getpixel((5, 5))
        assert abs(red - 200) + abs(green - 30) + abs(blue - 30) < 15
        assert b"who took it" not in data


def test_an_image_that_cannot_be_read_is_left_out(tmp_path, caplog) -> None:
    records = [drawn(tmp_path / f"{k}.png") for k in range(6)]
    whole = sample_images(data_set(*records))
    (tmp_path / "1.png").write_bytes(b"no image any more")
    (tmp_path / "5.png").unlink()
    left = sample_images(data_set(*records))
    assert [image["position"] for image in whole["images"]] == [0, 1, 3, 5]
    assert left["images"] == [whole["images"][0], whole["images"][2]]
    assert "1.png is left out" in caplog.text
    assert sample_images(data_set(records[5])) is None
    assert sample_images(data_set()) is None


# -- what is found on them ------------------------------------------------------------------------------------------


def test_what_is_shown_is_what_the_evaluation_found() -> None:
    result, detector = run(epochs=6)
    val = DrawnMaps(12, seed=1)
    assert list(result.samples) == sample_positions(val.records) == [0, 3, 7, 11]
    for position, shown in result.samples.items():
        with torch.no_grad():
            (found,) = detector.detect(val.batch([position]), SIZE)
        assert len(shown) == min(DETECTIONS, len(found["scores"])) > 0
        # The file is three times as wide and twice as high as the network's input.
        in_file = found["boxes"] * torch.tensor([3, 2, 3, 2])
        wanted = torch.cat([in_file, found["labels"][:, None], found["scores"][:, None]], dim=1)[:DETECTIONS]
        tolerance = torch.tensor([0.06, 0.06, 0.06, 0.06, 0, 0.0006])
        assert ((torch.tensor(shown) - wanted).abs() <= tolerance).all()
        scores = [entry[-1] for entry in shown]
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] >= 0.05
        assert "00000" not in json.dumps(shown)  # rounded


def test_at_most_a_dozen_of_an_image_are_kept_and_none_is_fine(tmp_path) -> None:
    boxes, scores = torch.rand(30, 4) * 100, torch.linspace(0.9, 0.1, 30)
    many = {"boxes": boxes, "scores": scores, "labels": torch.arange(30)}
    none = {name: values[:0] for name, values in many.items()}
    found = sample_detections([many, none], [record(tmp_path)] * 2)
    assert [entry[4] for entry in found[0]] == list(range(DETECTIONS))
    assert found[1] == []
    assert sample_detections([many], [record(tmp_path, crowd=[True])]) == {}


# -- in a study -----------------------------------------------------------------------------------------------------


def raw(study) -> str:
    """What is stored of the images."""
    return json.dumps(study._study.user_attrs[SAMPLES])


def test_a_search_keeps_them_goes_on_with_them_and_hands_them_on(tmp_path) -> None:
    where = {"results": tmp_path / "results", "cache": tmp_path / "cache"}
    space = Space.from_dict({**TINY, "training": {"epochs": 2, "learning_rate": 4e-3}})
    study = search(space, trials=1, **where)
    first = study.samples()
    assert json.loads(json.dumps(first)) == first
    assert len(first["images"]) == IMAGES
    assert set(first["images"][0]) == {"name", "width", "height", "jpeg", "truth"}
    assert all(0 <= box[4] < len(first["classes"]) for image in first["images"] for box in image["truth"])
    assert list(first["detections"]) == list(study.table().candidate)
    ((*of_each,),) = first["detections"].values()
    assert len(of_each) == len(first["images"])
    for image, boxes in zip(first["images"], of_each, strict=True):
        for x1, y1, x2, y2, label, score in boxes:
            assert 0 <= x1 <= x2 <= image["width"]
            assert 0 <= y1 <= y2 <= image["height"]
            assert label in range(len(first["classes"]))
            assert 0.05 <= score <= 1
    stored = next(study.rows())["detections"]
    assert isinstance(stored, str)
    assert "detections" not in study.table()

    before = raw(study)
    (tmp_path / "cache/data").rename(tmp_path / "cache/away")  # drawn anew: the same images, of another age
    more = search(space, trials=2, **where)
    assert raw(more) == before
    both = load_study(tmp_path / "results/tiny").samples()
    assert both["images"] == first["images"]
    assert list(both["detections"]) == list(more.table().candidate)
    one, two = both["detections"]
    assert both["detections"][one] == of_each
    assert load_study(tmp_path / "results/tiny").samples([two])["detections"] == {two: both["detections"][two]}

    other = search(space, name="other", trials=1, **where)
    assert (other.table().shared_from == "tiny").sum() == 2
    assert other.samples()["images"] == both["images"]
    assert {name: other.samples()["detections"][name] for name in (one, two)} == both["detections"]


def test_a_training_that_pauses_keeps_none(tmp_path) -> None:
    space = Space.from_dict({**TINY, "training": {"epochs": 2}})
    bench, _ = prepare(space, cache=tmp_path)
    evaluator = DetectorEvaluator(space, bench)
    described = evaluator.describe({"channels": 8})
    assert "detections" not in evaluator.train(described, 0, 1, lambda _: None)
    assert set(json.loads(evaluator.train(described, 0, 2, lambda _: None)["detections"])) == {"0", "1", "2", "3"}


class Sees(InstantEvaluator):
    """Finds one box on each of the positions 0 and 7, whose score tells the seed."""

    positions = ("0", "7")

    def train(self, described, seed, epochs, on_progress):
        found = {position: [[1.0, 2.0, 3.0, 4.0, 0, 0.5 + seed / 10]] for position in self.positions}
        return {**super().train(described, seed, epochs, on_progress), "detections": json.dumps(found)}


def images(*positions) -> dict:
    one = {"name": "a.jpg", "width": 9, "height": 9, "jpeg": "", "truth": []}
    return {"classes": ["cat"], "images": [{"position": position, **one} for position in positions]}


def test_a_study_without_images_has_none_and_gets_them_on_going_on(tmp_path) -> None:
    searched = made_up()
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=2)
    assert study.samples() is None
    study, _ = run_study(
        searched, Sees(searched), PROTOCOL, tmp_path / "s", budget=3, samples=lambda: None
    )  # none could be read
    assert study.samples() is None
    study, _ = run_study(searched, Sees(searched), PROTOCOL, tmp_path / "s", budget=4, samples=lambda: images(0, 7))
    of_later = dict.fromkeys(study.table().candidate[2:], [[[1.0, 2.0, 3.0, 4.0, 0, 0.5]]] * 2)
    assert study.samples()["detections"] == of_later

    def again():
        raise AssertionError("they are there")

    study, _ = run_study(searched, Sees(searched), PROTOCOL, tmp_path / "s", budget=5, samples=again)
    assert len(study.samples()["detections"]) == 3


def test_an_image_that_was_left_out_is_left_out_of_the_detections_too(tmp_path) -> None:
    searched = made_up(budget={"trials": 1})
    study, _ = run_study(searched, Sees(searched), PROTOCOL, tmp_path / "a", samples=lambda: images(7))
    (found,) = study.samples()["detections"].values()
    assert found == [[[1.0, 2.0, 3.0, 4.0, 0, 0.5]]]
    study, _ = run_study(searched, Sees(searched), PROTOCOL, tmp_path / "b", samples=lambda: images(7, 8), share=False)
    assert study.samples()["detections"] == {}  # they were taken on other images


def test_of_several_seeds_the_lowest_is_shown(tmp_path) -> None:
    searched = made_up(neck={"family": "fpn", "channels": {"choices": [32, 64]}}, enqueue="none")
    for seed in (1, 0):
        study, _ = run_study(
            searched, Sees(searched), PROTOCOL, tmp_path / "s", budget=4, seed=seed, samples=lambda: images(0)
        )
    complete = study.table().query("status == 'complete'")
    assert sorted(complete.seed) == [0, 0, 1, 1]
    assert list(study.samples()["detections"].values()) == [[[[1.0, 2.0, 3.0, 4.0, 0, 0.5]]]] * 2
