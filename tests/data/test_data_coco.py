"""Reading COCO-format data: what is read, what is changed and counted, what is refused and how."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from fpn_bench.data.coco import load_coco
from fpn_bench.data.images import load_image
from fpn_bench.errors import DataError

SIZE = (40, 60)  # height, width
SPLITS = ("train", "val")


def coco_file(split: str) -> dict:
    first = 1 if split == "train" else 11
    return {
        "info": {"year": 2017},
        "images": [
            {"id": first + i, "file_name": f"{split}{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(3)
        ],
        "annotations": [
            {"id": 1, "image_id": first + 1, "category_id": 9, "bbox": [5, 6, 20, 10], "area": 150, "iscrowd": 0},
            {"id": 2, "image_id": first, "category_id": 2, "bbox": [1, 2, 30, 30], "segmentation": [[1, 2, 3]]},
            {"id": 3, "image_id": first + 1, "category_id": 2, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog", "supercategory": "animal"}],
    }


class Folder:
    """A small data set on disk whose annotation files can be edited."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "annotations").mkdir(parents=True)
        (root / "images").mkdir()
        rng = np.random.default_rng(0)
        for split in SPLITS:
            for i in range(3):
                pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "images" / f"{split}{i}.png")
            self.write(split, coco_file(split))

    def write(self, split: str, data: object) -> None:
        self.path(split).write_text(data if isinstance(data, str) else json.dumps(data))

    def path(self, split: str) -> Path:
        return self.root / "annotations" / f"{split}.json"

    def edit(self, split: str, edit) -> None:
        data = json.loads(self.path(split).read_text())
        edit(data)
        self.write(split, data)

    def image(self, name: str) -> Path:
        return self.root / "images" / name

    def refused(self, **options) -> str:
        with pytest.raises(DataError) as caught:
            load_coco(self.root, **options)
        message = str(caught.value)
        assert "\n" not in message
        return message


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "pets")


def test_reads_what_is_there(folder: Folder):
    data = load_coco(folder.root)
    assert data.name == "pets"
    assert data.classes == ("dog", "cat")  # by category id, whatever the order in the file
    assert list(data.splits) == ["train", "val"]
    assert data.notes == ()
    first, second, empty = data.splits["train"]
    assert [r.id for r in data.splits["train"]] == [1, 2, 3]
    assert first.size == SIZE
    assert first.path == folder.image("train0.png")
    np.testing.assert_array_equal(first.boxes, np.array([[1, 2, 31, 32]], np.float32))
    np.testing.assert_array_equal(first.areas, np.array([900], np.float32))  # no area given: the box's
    np.testing.assert_array_equal(second.boxes, np.array([[5, 6, 25, 16], [0, 0, 60, 40]], np.float32))
    np.testing.assert_array_equal(second.labels, [1, 0])
    np.testing.assert_array_equal(second.areas, np.array([150, 2400], np.float32))
    np.testing.assert_array_equal(second.crowd, [False, True])
    assert empty.boxes.shape == (0, 4)
    for r in data.splits["train"]:
        assert (r.boxes.dtype, r.labels.dtype, r.areas.dtype, r.crowd.dtype) == (np.float32, np.int64, np.float32, bool)
    assert load_image(first).size == (60, 40)
    assert load_image(first).mode == "RGB"


def test_real_coco_annotations_equal_pycocotools(shared: Path):
    root = shared / "data" / "coco_tiny"
    data = load_coco(root)
    assert len(data.classes) == 80
    for split, records in data.splits.items():
        reference = COCO(str(root / "annotations" / f"{split}.json"))
        names = {c["id"]: c["name"] for c in reference.dataset["categories"]}
        assert [r.id for r in records] == [image["id"] for image in reference.dataset["images"]]
        assert sum(r.crowd.sum() for r in records) == 1
        for r in records:
            theirs = reference.loadAnns(reference.getAnnIds(imgIds=[r.id]))
            x, y, w, h = np.array([a["bbox"] for a in theirs], float).reshape(-1, 4).T
            np.testing.assert_allclose(r.boxes, np.stack([x, y, x + w, y + h], 1), atol=0.05)
            np.testing.assert_allclose(r.areas, [a["area"] for a in theirs], rtol=1e-6)
            assert [data.classes[label] for label in r.labels] == [names[a["category_id"]] for a in theirs]
            assert r.crowd.tolist() == [bool(a["iscrowd"]) for a in theirs]
    assert any(len(r.boxes) == 0 for r in data.splits["val"])


@pytest.mark.parametrize("name", ["oi_vehicles", "bccd"])
def test_real_data_sets_are_read_without_a_change(shared: Path, name: str):
    data = load_coco(shared / "data" / name)
    assert list(data.splits) == ["train", "val", "test"]
    assert data.notes == ()
    counts = {"oi_vehicles": (381, 786), "bccd": (205, 2804)}
    train = data.splits["train"]
    assert (len(train), sum(len(r.boxes) for r in train)) == counts[name]


@pytest.mark.parametrize("layout", ["plain", "official", "official_in_images", "explicit", "explicit_absolute"])
def test_every_layout_is_the_same_data_set(folder: Folder, tmp_path: Path, layout: str):
    wanted = load_coco(folder.root)
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    splits = None
    for split in SPLITS:
        if layout == "plain":
            annotation, images = "annotations/{}.json", "images"
        elif layout == "official":
            annotation, images = "annotations/instances_{}2017.json", "{}2017"
        elif layout == "official_in_images":
            annotation, images = "annotations/instances_{}2017.json", "images/{}2017"
        else:
            annotation, images = "{}_boxes.json", "pictures"
        shutil.copytree(folder.root / "images", other / images.format(split), dirs_exist_ok=True)
        shutil.copy(folder.path(split), other / annotation.format(split))
        (other / "annotations" / "instances_trainval2017.json").write_text("not read")
    if layout.startswith("explicit"):
        base = other if layout == "explicit_absolute" else Path()
        splits = {split: (base / f"{split}_boxes.json", base / "pictures") for split in SPLITS}
    data = load_coco(None if layout == "explicit_absolute" else other, splits=splits, name="pets")
    assert data.hash == wanted.hash
    assert data.name == wanted.name


class TestHash:
    def test_is_that_of_the_data_not_of_the_spelling(self, folder: Folder, tmp_path: Path):
        wanted = load_coco(folder.root).hash
        moved = tmp_path / "moved"
        shutil.copytree(folder.root, moved)
        for split in SPLITS:
            data = json.loads(folder.path(split).read_text())
            data = dict(reversed([(k, v) for k, v in data.items() if k != "info"]))
            data["annotations"] = [dict(reversed(a.items())) for a in data["annotations"]]
            data["categories"].reverse()
            (moved / "annotations" / f"{split}.json").write_text(json.dumps(data, indent=3))
        assert load_coco(moved, name="another").hash == wanted

    @pytest.mark.parametrize(
        "edit",
        [
            lambda d: d["annotations"][0]["bbox"].__setitem__(0, 5.5),
            lambda d: d["annotations"][0].__setitem__("area", 151),
            lambda d: d["annotations"][0].__setitem__("category_id", 2),
            lambda d: d["annotations"][0].__setitem__("iscrowd", 1),
            lambda d: d["annotations"].pop(),
            lambda d: d["images"].pop(),
            lambda d: d["images"].reverse(),
        ],
    )
    def test_changes_with_the_annotations(self, folder: Folder, edit):
        before = load_coco(folder.root).hash
        folder.edit("val", edit)
        assert load_coco(folder.root).hash != before

    def test_changes_with_class_names_and_pixels(self, folder: Folder):
        hashes = {load_coco(folder.root).hash}
        Image.new("RGB", SIZE[::-1]).save(folder.image("val2.png"))
        hashes.add(load_coco(folder.root).hash)
        for split in SPLITS:
            folder.edit(split, lambda d: d["categories"][0].__setitem__("name", "Cat"))
        hashes.add(load_coco(folder.root).hash)
        assert len(hashes) == 3


class TestBoxesAreMended:
    def add(self, folder: Folder, *boxes: object, **keys: object) -> None:
        folder.edit(
            "val",
            lambda d: d["annotations"].extend({"image_id": 13, "category_id": 2, "bbox": b, **keys} for b in boxes),
        )

    def test_clipped_to_the_image_and_counted(self, folder: Folder):
        self.add(folder, [-10, -5, 30, 25], [50, 30, 100, 100], area=700)
        data = load_coco(folder.root)
        last = data.splits["val"][2]
        np.testing.assert_array_equal(last.boxes, np.array([[0, 0, 20, 20], [50, 30, 60, 40]], np.float32))
        np.testing.assert_array_equal(last.areas, np.array([400, 100], np.float32))  # no more than what is left
        assert data.notes == ("val: 2 boxes reaching outside their image clipped",)

    def test_rounding_at_the_border_is_no_note(self, folder: Folder):
        self.add(folder, [30.004, 0, 30.004, 40.001])
        data = load_coco(folder.root)
        assert data.notes == ()
        assert data.splits["val"][2].boxes[0, 2] == 60

    def test_dropped_when_nothing_is_left_and_counted(self, folder: Folder):
        self.add(folder, [5, 5, 0, 10], [5, 5, 10, 0.5], [5, 5, -3, 4], [59.5, 5, 10, 10], [200, 200, 10, 10])
        self.add(folder, [5, 5, 1, 1])
        data = load_coco(folder.root)
        assert len(data.splits["val"][2].boxes) == 1
        assert data.notes == ("val: 5 boxes with a side under 1 px inside their image dropped",)

    def test_not_a_number_is_dropped_and_counted(self, folder: Folder):
        self.add(folder, [math.nan, 5, 10, 10], [5, 5, math.inf, 10])
        data = load_coco(folder.root)
        assert len(data.splits["val"][2].boxes) == 0
        assert data.notes == ("val: 2 boxes with a coordinate that is no number dropped",)

    def test_areas_that_say_nothing_become_the_boxes(self, folder: Folder):
        for area in (None, 0, -4):
            self.add(folder, [5, 5, 10, 10], area=area)
        assert load_coco(folder.root).splits["val"][2].areas.tolist() == [100] * 3

    def test_an_area_that_is_no_number_is_refused(self, folder: Folder):
        self.add(folder, [5, 5, 10, 10], area=math.nan)
        with pytest.raises(DataError, match=r"annotations\[\d\]\.area is 'nan'"):
            load_coco(folder.root)


class TestRefused:
    def test_no_folder_and_nothing_given(self, folder: Folder, tmp_path: Path):
        with pytest.raises(DataError, match=r"nowhere does not exist.*annotations/train\.json"):
            load_coco(tmp_path / "nowhere")
        with pytest.raises(DataError, match="expected a data set, got none"):
            load_coco()

    def test_no_annotation_file(self, folder: Folder, tmp_path: Path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"empty has no annotation file: expected annotations/train\.json"):
            load_coco(tmp_path / "empty")
        assert "gone.json does not exist" in folder.refused(splits={"train": ("gone.json", "images")})

    def test_no_val(self, folder: Folder):
        folder.path("val").unlink()
        assert "has no val split: expected train and val, got train" in folder.refused()
        assert "has no val split" in folder.refused(splits={"train": ("annotations/train.json", "images")})

    def test_two_files_for_a_split(self, folder: Folder):
        folder.path("val").rename(folder.path("instances_val2014"))
        shutil.copy(folder.path("instances_val2014"), folder.path("instances_val2017"))
        assert "2 val files (instances_val2014.json, instances_val2017.json)" in folder.refused()

    @pytest.mark.parametrize("text", ["", "{", "not json", '{"images": [}'])
    def test_not_json(self, folder: Folder, text: str):
        folder.write("train", text)
        message = folder.refused()
        assert f"annotation file {folder.path('train')} is not JSON" in message

    @pytest.mark.parametrize(
        ("data", "key"),
        [
            ([], "the whole"),
            ({"shapes": []}, "key images is missing"),
            ({"images": [], "annotations": []}, "key categories is missing"),
            ({"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": []}, "key images[0].height"),
            (
                {"images": [{"id": 1, "file_name": "a", "height": 0, "width": 5}], "annotations": [], "categories": []},
                "key images[0].height is '0'",
            ),
            (
                {"images": [], "annotations": [{"image_id": 1, "category_id": 1}], "categories": []},
                "key annotations[0].bbox is missing",
            ),
            (
                {"images": [], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}], "categories": []},
                "key annotations[0].bbox",
            ),
            ({"images": [], "annotations": [], "categories": [{"id": 1}]}, "key categories[0].name is missing"),
        ],
    )
    def test_json_but_not_coco(self, folder: Folder, data: object, key: str):
        folder.write("train", data)
        message = folder.refused()
        assert f"annotation file {folder.path('train')} is JSON but not COCO: {key}" in message
        assert "bbox" in message.split("expected")[1]

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda d: d["annotations"][1].update(image_id=99), "annotations[1] is on image 99"),
            (lambda d: d["annotations"][2].update(category_id=5), "annotations[2] has category 5"),
            (lambda d: d["images"][1].update(id=11), "expected each image id once, got 11 more than once"),
            (lambda d: d["categories"][1].update(id=9), "expected each category id once, got 9 more than once"),
            (lambda d: d["categories"][1].update(name="cat"), "each category name once, got 'cat' more than once"),
            (lambda d: d["images"].clear(), "expected at least one image, got none"),
            (lambda d: d["annotations"].clear(), "has no boxes on its 3 images"),
        ],
    )
    def test_files_that_contradict_themselves(self, folder: Folder, edit, message: str):
        folder.edit("val", edit)
        refused = folder.refused()
        assert message in refused
        assert str(folder.path("val")) in refused

    def test_classes_that_differ(self, folder: Folder):
        folder.edit("val", lambda d: d["categories"].append({"id": 3, "name": "bird"}))
        assert f"only {folder.path('val')} has 'bird'" in folder.refused()
        folder.write("val", coco_file("val"))
        folder.edit("train", lambda d: d["categories"].append({"id": 3, "name": "bird"}))
        assert f"only {folder.path('train')} has 'bird'" in folder.refused()
        folder.write("train", coco_file("train"))
        folder.edit("val", lambda d: (d["categories"][0].update(id=3), d["annotations"].pop(0)))
        assert "'cat' has id 9 in" in folder.refused()

    def test_size_that_differs_from_the_file(self, folder: Folder):
        folder.edit("val", lambda d: d["images"][1].update(width=61))
        message = folder.refused()
        assert f"image {folder.image('val1.png')} is 60x40 but {folder.path('val')} says 61x40" in message

    def test_size_as_exif_turns_it(self, folder: Folder):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (40, 60)).save(folder.image("val1.png"), exif=exif)
        message = folder.refused()
        assert "is 40x60 but" in message
        assert "exif_transpose" in message


class TestUnreadableImages:
    @pytest.fixture(
        params=["missing", "text", "empty", "truncated png", "truncated jpeg", "truncated progressive jpeg"]
    )
    def broken(self, folder: Folder, request: pytest.FixtureRequest) -> Path:
        path = folder.image("val1.png")
        if request.param == "missing":
            path.unlink()
        elif request.param == "text":
            path.write_text("<html>404</html>")
        elif request.param == "empty":
            path.write_bytes(b"")
        else:
            if "jpeg" in request.param:
                pixels = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path, "JPEG", progressive="progressive" in request.param)
            data = path.read_bytes()
            path.write_bytes(data[: len(data) * 2 // 3])
        return path

    def test_is_named(self, folder: Folder, broken: Path):
        message = folder.refused()
        assert f"image {broken} of {folder.path('val')} cannot be read: " in message
        assert "skip_unreadable=True" in message

    def test_is_skipped_when_the_user_says_so(self, folder: Folder, broken: Path):
        data = load_coco(folder.root, skip_unreadable=True)
        assert [r.path.name for r in data.splits["val"]] == ["val0.png", "val2.png"]
        assert [len(r.boxes) for r in data.splits["val"]] == [1, 0]
        assert data.notes == ("val: 1 unreadable images skipped (val1.png)",)

    def test_others_are_counted(self, folder: Folder, broken: Path):
        folder.image("val2.png").unlink()
        assert "(and 1 more of 3)" in folder.refused()

    def test_when_it_breaks_later(self, folder: Folder):
        r = load_coco(folder.root).splits["val"][1]
        data = r.path.read_bytes()
        r.path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match=r"val1\.png was readable when the data set was loaded"):
            load_image(r)
        Image.new("RGB", (5, 5)).save(r.path)
        with pytest.raises(DataError, match="is 5x5 now, 60x40 when"):
            load_image(r)


def test_images_in_two_splits_are_noted(folder: Folder):
    shutil.copy(folder.image("train0.png"), folder.image("val0.png"))
    assert load_coco(folder.root).notes == ("val: 1 images are also in train",)


def test_progress_counts_every_image(folder: Folder):
    calls = []
    load_coco(folder.root, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 6) for i in range(1, 7)]


def test_grey_and_palette_files_become_rgb(folder: Folder):
    Image.new("L", SIZE[::-1], 7).save(folder.image("val0.png"))
    Image.new("RGBA", SIZE[::-1], (1, 2, 3, 0)).save(folder.image("val1.png"))
    grey, transparent, _ = load_coco(folder.root).splits["val"]
    assert load_image(grey).getpixel((0, 0)) == (7, 7, 7)
    assert load_image(transparent).getpixel((0, 0)) == (1, 2, 3)


def test_reading_data_imports_no_torch():
    code = "import sys, fpn_bench.data.coco, fpn_bench.data.synthetic; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
