"""The command line over exported and found detectors: what `export` and `predict` print, write and refuse."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from PIL import Image

import fpn_bench as fb
from fpn_bench.cli.export import load_model
from fpn_bench.data.formats import load_dataset, write_dataset
from fpn_bench.data.images import read_upright
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.errors import InputError
from fpn_bench.export.pictures import colour, draw, image_files
from fpn_bench.search import Space
from fpn_bench.search.api import search
from fpn_bench.training.protocol import HeadConfig

SPACE = {
    "name": "tiny",
    "backbone": {"name": "test_resnet"},
    "data": {"kind": "synthetic", "train_images": 8, "val_images": 4, "image_size": [96, 96]},
    "image_size": [64, 64],
    "head": {"kind": "fcos", "convs": 0},
    "training": {"epochs": 1},
    "neck": {"family": "fpn", "channels": {"choices": [8, 16]}},
    "objectives": {"ap": "maximise", "macs": "minimise"},
    "budget": {"trials": 2},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    where = tmp_path_factory.mktemp("study")
    search(Space.from_dict(SPACE), results=where / "results", cache=where / "cache")
    return where


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file with a detector that finds much, wherever it looks."""
    trunk = fb.create_backbone("test_resnet", image_size=(64, 64))
    graph = fb.create_graph("fpn", trunk.features, (3, 4, 5), 8)
    spec = fb.DetectorSpec(
        "test_resnet", (3, 4, 5), "simple", "random", graph, HeadConfig(convs=0), (64, 64), ("car", "[red]")
    )
    built = fb.ImageDetector.build(spec)
    torch.nn.init.constant_(built.detector.head.classification_head.cls_logits.bias, 1.0)
    return built.save(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, size, mode in (("b.png", (70, 50), "RGBA"), ("a.jpg", (300, 90), "RGB"), ("deep/a.png", (1, 1), "L")):
        Image.effect_noise(size, 80).convert(mode).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_images_is_drawn_and_printed(cli, model, photos, tmp_path) -> None:
    code, out, err = cli("predict", str(photos), "--model", str(model), "--out", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert [line.split(" (")[0] for line in out.splitlines() if ": " in line] == [
        str(photos / "a.jpg"),
        str(photos / "b.png"),
    ]
    assert "[red]" in out  # a class's name is text, not markup
    assert Image.open(tmp_path / "out" / "a.png").size == (300, 90)


def test_json_is_in_pixels_of_the_image(cli, model, photos) -> None:
    files = (str(photos / "a.jpg"), str(photos / "**" / "*.png"))
    code, out, _ = cli("predict", *files, "--model", str(model), "--json", "--score", "0.2")
    told = json.loads(out)
    assert code == 0
    assert told["classes"] == ["car", "[red]"]
    assert [entry["image"].rpartition("photos/")[2] for entry in told["images"]] == ["a.jpg", "b.png", "deep/a.png"]
    wide = told["images"][0]
    assert (wide["width"], wide["height"], "drawing" in wide) == (300, 90, False)
    source = fb.ImageDetector.load(model)
    (found,) = source.detect([read_upright(photos / "a.jpg")], score_threshold=0.2)
    assert len(wide["detections"]) == len(found["scores"]) > 0
    assert wide["detections"][0]["score"] == round(found["scores"][0].item(), 4)
    assert max(one["box"][2] for one in wide["detections"]) <= 300


def test_files_of_one_name_do_not_overwrite_each_other(cli, model, photos, tmp_path) -> None:
    cli("predict", str(photos), str(photos / "deep"), "-m", str(model), "--out", str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2.png", "a.png", "b.png"]


def test_numbered_drawings_leave_each_other_alone(cli, model, tmp_path) -> None:
    names = ("a.jpg", "a.png", "a-2.jpg")
    for name in names:
        Image.effect_noise((20, 20), 80).save(tmp_path / name)
    _, out, _ = cli("predict", *(str(tmp_path / n) for n in names), "-m", str(model), "--out", str(tmp_path / "out"))
    drawn = [line.rpartition(" -> ")[2] for line in out.splitlines() if " -> " in line]
    assert drawn == [str(tmp_path / "out" / name) for name in ("a.png", "a-2.png", "a-2-2.png")]
    assert {str(path) for path in (tmp_path / "out").iterdir()} == set(drawn)


def test_images_are_never_drawn_over(cli, model, photos, tmp_path) -> None:
    before = (photos / "b.png").read_bytes()
    code, _, err = cli("predict", str(photos / "b.png"), "-m", str(model), "--out", str(photos / "deep" / ".."))
    assert (code, err.count("\n")) == (2, 1)
    assert "where" in err
    assert "--out DIR" in err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").symlink_to(photos / "b.png")  # a way back to an image
    assert cli("predict", str(photos / "b.png"), "-m", str(model), "--out", str(tmp_path / "out"))[0] == 0
    assert (photos / "b.png").read_bytes() == before
    assert (tmp_path / "out" / "b-2.png").is_file()


def test_names_of_files_steer_no_terminal(cli, model, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    for name in (b"a\x1b[31m\x07.png", b"\xff\xfe.png", "gnp.\u202ex.png".encode(), b"two\nlines.png"):
        Image.effect_noise((20, 20), 80).save(os.fsencode(tmp_path / "in") + b"/" + name, "PNG")
    (tmp_path / "in" / "broken\x1b[2J.png").write_bytes(b"none")
    code, out, err = cli("predict", str(tmp_path / "in"), "-m", str(model), "--out", str(tmp_path / "out"))
    assert code == 1  # of the broken one
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert all(c.isprintable() or c == "\n" for c in out + err)
    code, out, _ = cli("predict", str(tmp_path / "in"), "-m", str(model), "--json")
    assert len(json.loads(out)["images"]) == 4


def test_drawings_of_a_call_before_stay(cli, model, photos, tmp_path) -> None:
    arguments = ("predict", str(photos / "b.png"), "-m", str(model), "--out", str(tmp_path / "out"))
    cli(*arguments)
    before = (tmp_path / "out" / "b.png").read_bytes()
    (tmp_path / "out" / "b.png").write_bytes(before + b"mine")
    _, out, _ = cli(*arguments)
    assert (tmp_path / "out" / "b.png").read_bytes() == before + b"mine"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b-2.png", "b.png"]
    assert "b-2.png" in out


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(cli, model, photos) -> None:
    files = (str(photos / "notes.txt"), str(photos / "b.png"))
    code, out, err = cli("predict", *files, "--model", str(model), "--json")
    assert code == 1
    wanted = "not an image (expected PNG, JPEG, WEBP, BMP, TIFF, GIF or PPM)"
    assert err == f"fpn-bench: {photos / 'notes.txt'} cannot be read: {wanted}\n"
    assert len(json.loads(out)["images"]) == 1


def test_what_is_no_image_or_detector_is_refused_in_a_line(cli, model, photos, tmp_path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for argument, message in (
        (str(empty), "holds no image"),
        (str(tmp_path / "none.jpg"), "does not exist"),
        (str(tmp_path / "*.gif"), "matches no file"),
    ):
        code, _, err = cli("predict", argument, "--model", str(model))
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    picture = str(photos / "b.png")
    for option, message in (
        ((str(tmp_path / "no.safetensors"),), "no detector at"),
        ((str(model), "--trial", "3"), "expected a study with --trial 3, got the file"),
        ((str(tmp_path / "no.onnx"),), "no detector at"),
        ((str(model), "--device", "tpu"), "tpu"),
    ):
        code, _, err = cli("predict", picture, "--model", *option)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_photos_are_shown_upright(tmp_path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_upright(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize("size", [(1, 1), (30, 200), (2000, 40)])
def test_drawing_stays_in_the_image_and_leaves_the_original(size) -> None:
    image = Image.new("RGB", size, (10, 10, 10))
    boxes = torch.tensor([[0.0, 0.0, *map(float, size)], [-5.0, -5.0, 3.0, 2.0], [9.0, 9.0, 9.0, 9.0]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.5]), "labels": torch.tensor([0, 1, 0])}
    drawn = draw(image, found, ("a very long name of a class", "b"))
    assert drawn.size == image.size
    assert image.getcolors() == [(size[0] * size[1], (10, 10, 10))]
    assert drawn.getcolors(maxcolors=10**6) != image.getcolors()
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    assert draw(image, nothing, ()).tobytes() == image.tobytes()


def test_classes_have_colours_of_their_own() -> None:
    assert len({colour(label) for label in range(80)}) == 80


def test_a_file_named_twice_is_one(photos) -> None:
    assert len(image_files([str(photos), str(photos / "a.jpg"), str(photos / "*.jpg")])) == 2


def test_a_trial_is_exported_with_the_rows_ap(cli, study, tmp_path) -> None:
    folder, cache = study / "results" / "tiny", ("--cache", str(study / "cache"))
    where = ("--out", str(tmp_path / "out"))
    code, out, err = cli("export", str(folder), "--trial", "1", "--to", "torchvision", *where, *cache)
    assert code == 0, err
    ap = fb.load_study(folder).table().ap.iloc[1]
    assert "the search's short training is done again" in err
    assert f"as in the study ({ap:.2f})" in err
    assert "AP on val" in out
    assert out.splitlines()[-2:] == [str(tmp_path / "out" / name) for name in ("detector.py", "weights.pt")]


def test_a_file_is_compared_on_data_of_any_format(model, tmp_path) -> None:
    coco = load_dataset(write_synthetic(tmp_path / "coco", train_images=2, val_images=2, image_size=(64, 64)))
    write_dataset(coco, tmp_path / "yolo", "yolo")
    with pytest.raises(InputError, match=r"the data set has the classes .*, the detector car, \[red\]"):
        load_model(str(model), None, data=str(tmp_path / "yolo"))  # it was read


def test_trained_weights_come_first(cli, study, tmp_path) -> None:
    folder, cache = study / "results" / "tiny", ("--cache", str(study / "cache"))
    kept = folder / "trained" / "trial-0" / "model.safetensors"
    from fpn_bench.search.load import load_candidate

    hit = load_candidate(folder, 0, cache=study / "cache")
    fb.ImageDetector.build(hit.spec).save(kept)
    try:
        where = ("--out", str(tmp_path / "out"), "--no-ap")
        code, _, err = cli("export", str(folder), "--trial", "0", "--to", "mmdet", *where, *cache)
        assert (code, err) == (0, f"weights: {kept}\n")
        code, _, err = cli("export", str(folder), "--trial", "1", "--to", "mmdet", "--model", str(kept), *where, *cache)
        other = code == 2 and "is another detector than trial 1" in err
        assert other == (hit.candidate.id != load_candidate(folder, 1, cache=study / "cache").candidate.id)
    finally:
        shutil.rmtree(folder / "trained")


def test_what_cannot_be_exported_is_refused_in_a_line(cli, study, model, tmp_path) -> None:
    folder = str(study / "results" / "tiny")
    for arguments, message in (
        ((folder, "--to", "onx"), "unknown target 'onx': did you mean 'onnx'?"),
        ((folder, "--to", "onnx", "--trial", "7"), "has no candidate of trial 7"),
        ((str(tmp_path / "none"), "--to", "onnx"), "none"),
        ((str(model), "--to", "onnx", "--trial", "1"), "expected a study with --trial 1, got the file"),
    ):
        code, _, err = cli("export", *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err


def test_an_exported_onnx_file_predicts(cli, model, photos, tmp_path) -> None:
    assert cli("export", str(model), "--to", "onnx", "--out", str(tmp_path / "out"))[0] == 0
    picture = (str(photos / "a.jpg"), "--json")
    _, before, _ = cli("predict", *picture, "--model", str(model))
    _, after, _ = cli("predict", *picture, "--model", str(tmp_path / "out" / "detector.onnx"))
    ours, theirs = (json.loads(text)["images"][0]["detections"] for text in (before, after))
    assert [one["class"] for one in ours] == [one["class"] for one in theirs]
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=2e-4)
