"""`check_dataset`: counts against hand-made sets, findings where they were planted, and nothing where nothing is."""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

import fpn_bench as fb
from fpn_bench.data.check import (
    HUGE_OVERLAP,
    LEVEL_STRIDES,
    DatasetCheck,
    _iou,
    _twins,
    check_dataset,
)
from fpn_bench.data.duplicates import THUMB_PX, ImageDigest, near_duplicates
from fpn_bench.data.formats import load_dataset
from fpn_bench.data.images import ImageCheck
from fpn_bench.errors import DataError

WIDTH, HEIGHT = 128, 96
CLASSES = ["cat", "dog"]


def picture(seed: int) -> Image.Image:
    """Something with large and small structure, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    grain = rng.integers(-10, 11, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(coarse, np.int16) + grain, 0, 255).astype(np.uint8))


class Folder:
    """A clean data set in COCO format, to be spoilt."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "annotations").mkdir(parents=True)
        (root / "images").mkdir()
        self.files: dict[str, dict] = {}
        for s, split in enumerate(("train", "val")):
            images = [{"id": i, "file_name": f"{split}{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, 4)]
            self.files[split] = {
                "images": images,
                "annotations": [],
                "categories": [{"id": i, "name": n} for i, n in enumerate(CLASSES)],
            }
            for i in range(1, 4):
                picture(10 * s + i).save(self.image(split, i))
            self.box(split, 1, 0, 10, 10, 20, 20)
            self.box(split, 1, 1, 50, 40, 40, 10)
            self.box(split, 2, 0, 5, 5, 30, 60)

    def image(self, split: str, number: int) -> Path:
        return self.root / "images" / f"{split}{number}.png"

    def box(self, split: str, image: int, label: int, *xywh: float, **more: object) -> None:
        self.files[split]["annotations"].append({"image_id": image, "category_id": label, "bbox": xywh, **more})

    def check(self, **options) -> DatasetCheck:
        for split, data in self.files.items():
            (self.root / "annotations" / f"{split}.json").write_text(json.dumps(data))
        return check_dataset(self.root, **options)

    def found(self, **options) -> dict[tuple[str, str], int]:
        return {(f.kind, f.split): f.count for f in self.check(**options).findings}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "pets")


def test_a_clean_set_is_counted_and_nothing_found(folder: Folder):
    check = folder.check()
    assert (check.findings, check.notes, check.is_usable) == ((), (), True)
    assert (check.name, check.format, check.classes) == ("pets", "coco", ("cat", "dog"))
    assert check.splits[0] == {
        "split": "train",
        "images": 3,
        "readable": 3,
        "without_boxes": 1,
        "boxes": 3,
        "to_ignore": 0,
        "boxes_an_image": 1.0,
        "boxes_at_most": 2,
        "width_min_px": 128,
        "width_median_px": 128,
        "width_max_px": 128,
        "height_min_px": 96,
        "height_median_px": 96,
        "height_max_px": 96,
    }
    assert check.balance == (
        {"class": "cat", "boxes": {"train": 2, "val": 2}, "images": {"train": 2, "val": 2}, "train_share": 2 / 3},
        {"class": "dog", "boxes": {"train": 1, "val": 1}, "images": {"train": 1, "val": 1}, "train_share": 1 / 3},
    )
    # areas 400, 400, 1800; longer sides 20, 40, 60; width / height 1, 4, 1/2
    assert [row["boxes"]["train"] for row in check.sizes] == [2, 1, 0]
    assert {row["side_from_px"]: row["boxes"]["val"] for row in check.sides} == {16: 1, 32: 2}
    assert [row["boxes"]["train"] for row in check.ratios] == [0, 0, 1, 1, 0, 0, 1]
    json.dumps(check.to_dict())


def test_sizes_are_those_of_the_resized_image(folder: Folder):
    check = folder.check(image_size=(384, 256))  # twice as wide, four times as high: 40x80, 80x40, 60x240
    assert {row["side_from_px"]: row["boxes"]["train"] for row in check.sides} == {64: 2, 128: 1}
    assert [row["level"] for row in check.sides] == [3, 4]
    assert [row["boxes"]["train"] for row in check.sizes] == [2, 1, 0]  # COCO's words are for the files
    assert [row["boxes"]["train"] for row in check.ratios] == [0, 1, 1, 0, 0, 1, 0]


def test_levels_are_those_of_the_detector():
    from fpn_bench.detection.detector import RANGE_OF_LEVEL

    assert tuple(2 * strides for strides in RANGE_OF_LEVEL) == LEVEL_STRIDES


def test_the_object_s_own_area_counts_where_it_is_told(folder: Folder):
    folder.box("train", 3, 1, 0, 0, 100, 90, area=1000)
    assert [row["boxes"]["train"] for row in folder.check().sizes] == [3, 1, 0]


class TestBoxes:
    def test_of_one_image_are_compared_in_bounded_memory(self):
        """As many at a time as fit, with the same answer as all at once."""
        rng = np.random.default_rng(0)
        low = rng.integers(0, 40, (3000, 2)).astype(float)
        boxes, labels = np.concatenate([low, low + rng.integers(5, 25, (3000, 2))], axis=1), rng.integers(0, 2, 3000)
        tracemalloc.start()
        came = _twins(boxes, labels)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200e6
        for i in rng.integers(0, 3000, 30):
            equal = (boxes[:i] == boxes[i]).all(axis=1)
            alike = labels[:i] == labels[i]
            huge = (_iou(boxes[:i], boxes[i : i + 1])[:, 0] >= HUGE_OVERLAP) & ~equal & alike
            assert [mask[i] for mask in came] == [(equal & alike).any(), (equal & ~alike).any(), huge.any()]

    @pytest.mark.parametrize(
        ("boxes", "found"),
        [
            ([(1, 120, 80, 20, 20)], {"outside": 1}),
            ([(1, 200, 200, 20, 20), (0, 5, 5, 0.5, 9)], {"empty": 2}),
            ([(1, float("nan"), 0, 20, 20)], {"no_number": 1}),
            ([(1, 40, 40, 3, 3.5)], {"tiny": 1}),
            ([(1, 0, 0, 128, 96)], {"whole_image": 1}),
            ([(1, 0, 0, 127, 95.5)], {"whole_image": 1}),
            ([(1, 0, 0, 120, 96)], {}),
            ([(1, 5, 5, 20, 20)] * 3, {"repeated": 2}),
            ([(1, 5, 5, 20, 20), (0, 5, 5, 20, 20)], {"two_classes": 1}),
            ([(1, 5, 5, 20, 20), (1, 5, 5, 20, 19)], {"overlap": 1}),
            ([(1, 5, 5, 20, 20), (0, 5, 5, 20, 19)], {}),
            ([(1, 5, 5, 20, 20), (1, 5, 5, 20, 17)], {}),
        ],
    )
    def test_that_look_wrong_are_counted(self, folder: Folder, boxes, found):
        for label, *xywh in boxes:
            folder.box("val", 3, label, *xywh)
        assert folder.found() == {(kind, "val"): n for kind, n in found.items()}
        check = folder.check()
        assert check.is_usable
        assert all(str(folder.image("val", 3)) in e for f in check.findings for e in f.examples)
        kept = sum(len(r.boxes) for r in load_dataset(folder.root).splits["val"])
        assert check.splits[1]["boxes"] == kept

    def test_tiny_is_what_training_sees(self, folder: Folder):
        folder.box("val", 3, 1, 40, 40, 3, 3.5)
        assert folder.found(image_size=(192, 256)) == {}
        assert folder.found(image_size=(8, 8))[("tiny", "train")] == 2

    def test_regions_to_ignore_are_only_counted(self, folder: Folder):
        folder.box("val", 3, 1, 0, 0, 128, 96, iscrowd=1)
        check = folder.check()
        assert check.findings == ()
        assert (check.splits[1]["boxes"], check.splits[1]["to_ignore"]) == (3, 1)

    def test_classes_missing_in_a_split(self, folder: Folder):
        folder.files["val"]["annotations"].pop(1)
        (finding,) = folder.check().findings
        assert (finding.kind, finding.split, finding.examples, finding.refused) == (
            "absent_class",
            "val",
            ("dog",),
            False,
        )

    def test_a_split_without_boxes_is_refused(self, folder: Folder):
        folder.files["val"]["annotations"].clear()
        check = folder.check()
        assert not check.is_usable
        assert [f.kind for f in check.findings] == ["no_boxes", "absent_class"]

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_regions_to_ignore_alone_are_refused_before_anything_is_paid(self, folder: Folder, cli, split: str):
        for annotation in folder.files[split]["annotations"]:
            annotation["iscrowd"] = 1
        check = folder.check()
        assert not check.is_usable
        assert (check.findings[0].kind, check.findings[0].split) == ("no_boxes", split)
        assert "no boxes but 3 regions to ignore" in check.findings[0].text
        assert cli("data", "check", str(folder.root))[0] == 1
        message = rf"{split}\.json has no boxes but 3 regions to ignore \(iscrowd, difficult\) on its 3 images"
        with pytest.raises(DataError, match=message):
            load_dataset(folder.root)
        code, _, err = cli("search", "quickstart", "--data", str(folder.root))
        assert (code, err.count("\n")) == (2, 1)
        assert "has no boxes but 3 regions to ignore" in err

    def test_a_test_split_of_regions_to_ignore_is_left_out_and_the_hash_stays(self, folder: Folder):
        folder.files["test"] = json.loads(json.dumps(folder.files["val"]))
        folder.check()
        before = load_dataset(folder.root)
        assert list(before.splits) == ["train", "val", "test"]
        for annotation in folder.files["test"]["annotations"]:
            annotation["iscrowd"] = 1
        folder.check()
        data = load_dataset(folder.root)
        assert list(data.splits) == ["train", "val"]
        assert "test: left out, for there are no boxes but 3 regions" in " ".join(data.notes)
        assert data.hash == "d21ea7cae864fa6a17020cd3fa3814e7e497655d1632723792e8c45358ac50a4"

    def test_examples_are_few_and_counts_are_whole(self, folder: Folder):
        for i in range(9):
            folder.box("val", 3, 1, 9 * i, 0, 3, 3)
        (finding,) = folder.check().findings
        assert (finding.count, len(finding.examples)) == (9, 5)


class TestImages:
    def test_that_cannot_be_read(self, folder: Folder):
        folder.image("val", 1).write_bytes(folder.image("val", 1).read_bytes()[:3000])
        folder.image("val", 3).unlink()
        check = folder.check()
        assert not check.is_usable
        first = check.findings[0]
        assert (first.kind, first.count, first.refused) == ("unreadable", 2, True)
        assert first.examples[1] == f"{folder.image('val', 3)}: no such file"
        assert (check.splits[1]["images"], check.splits[1]["readable"], check.splits[1]["boxes"]) == (3, 1, 1)
        with pytest.raises(DataError):
            load_dataset(folder.root)

    def test_of_another_size(self, folder: Folder):
        folder.files["val"]["images"][0]["width"] = 129
        check = folder.check()
        assert [(f.kind, f.refused) for f in check.findings] == [("contradiction", True), ("absent_class", False)]

    def test_that_viewers_turn(self, folder: Folder):
        """By a quarter, and the annotations have the size as stored: then the boxes are as stored, too."""
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(1).save(folder.image("train", 1), exif=exif)
        assert folder.found() == {("orientation", "train"): 1}
        assert folder.check().is_usable


class TestDuplicates:
    def test_copies_within_and_across_splits(self, folder: Folder):
        for target in (("train", 3), ("val", 2), ("val", 3)):
            shutil.copy(folder.image("train", 1), folder.image(*target))
        # val 3 is a copy of one in train, and of val 2
        assert folder.found() == {("same_file", "train"): 1, ("same_file_train", "val"): 2, ("same_file", "val"): 1}
        check = folder.check()
        assert check.is_usable
        leak = next(f for f in check.findings if f.kind == "same_file_train")
        assert "known from there" in leak.text
        assert leak.examples[0] == f"{folder.image('val', 2)} and {folder.image('train', 1)}"

    def test_other_files_with_the_same_pixels(self, folder: Folder):
        Image.open(folder.image("train", 1)).save(folder.image("val", 3), compress_level=1)
        assert folder.found() == {("same_pixels_train", "val"): 1}

    @pytest.mark.parametrize("change", ["jpeg", "blur", "brighter"])
    def test_near_ones(self, folder: Folder, change: str):
        original = Image.open(folder.image("train", 2))
        if change == "jpeg":
            original.save(folder.root / "x.jpg", quality=60)
            near = Image.open(folder.root / "x.jpg")
        elif change == "blur":
            near = original.filter(ImageFilter.GaussianBlur(0.7))
        else:
            near = original.point(lambda v: min(v + 2, 255))
        near.save(folder.image("val", 3))
        assert folder.found() == {("near_duplicate_train", "val"): 1}

    def test_frames_of_a_static_camera_are_found_in_little_time_and_memory(self):
        """Each frame is nearly every other: no pairs are kept, and each is compared with a few."""
        rng = np.random.default_rng(0)
        scene = rng.integers(0, 256, THUMB_PX**2)
        frames = [
            ImageDigest(
                ImageCheck(),
                gradient=0x123456789ABCDEF0,
                thumb=(scene // 2 + rng.integers(0, 4, scene.size)).astype(np.uint8),
            )
            for _ in range(4000)
        ]
        tracemalloc.start()
        begun = time.process_time()
        pairs = list(near_duplicates((i, "train" if i < 3000 else "val", frame) for i, frame in enumerate(frames)))
        taken, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(pairs) == 2999 + 999 + 1000  # each but the first of its split, and those of val in train besides
        assert taken < 15
        assert peak < 20e6

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 6), st.integers(0, 12))
    def test_near_ones_are_those_that_comparing_all_finds(self, seed: int, count: int, bits: int, levels: int):
        rng = np.random.default_rng(seed)
        looks = []
        for _ in range(count):
            gradient, thumb = 0, np.full(THUMB_PX**2, 100)
            for place in rng.choice(64, rng.integers(0, bits + 1), replace=False):
                gradient |= 1 << int(place)
            thumb = thumb + rng.integers(-levels, levels + 1) + rng.integers(-1, 2, thumb.size)
            looks.append(
                (str(rng.choice(["train", "val"])), ImageDigest(ImageCheck(), b"", gradient, thumb.astype(np.uint8)))
            )

        def are_near(a: ImageDigest, b: ImageDigest) -> bool:
            apart = np.abs(a.thumb.astype(int) - b.thumb).mean()
            return (a.gradient ^ b.gradient).bit_count() <= 3 and bool(apart <= 4)

        found = set(near_duplicates((i, split, look) for i, (split, look) in enumerate(looks)))
        assert all(i > j and are_near(looks[i][1], looks[j][1]) for i, j in found)
        wanted = {(i, looks[j][0]) for i in range(count) for j in range(i) if are_near(looks[i][1], looks[j][1])}
        assert {(i, looks[j][0]) for i, j in found} <= wanted
        if count <= 8:  # so few that nothing is forgotten
            assert {(i, looks[j][0]) for i, j in found} == wanted

    def test_not_what_is_alike_in_general(self, folder: Folder):
        """Flat images have no gradients to differ by; their colours tell."""
        for i, grey in enumerate((20, 120, 220), start=1):
            Image.new("RGB", (WIDTH, HEIGHT), (grey,) * 3).save(folder.image("val", i))
        assert folder.found() == {}


def test_orphans_and_notes_come_from_the_reader(folder: Folder, tmp_path: Path):
    folder.check()
    fb.write_dataset(fb.load_dataset(folder.root), tmp_path / "yolo", "yolo")
    (tmp_path / "yolo/labels/val/old.txt").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "yolo/labels/val/classes.txt").write_text("cat\n")
    check = fb.check_dataset(tmp_path / "yolo")
    assert [(f.kind, f.examples) for f in check.findings] == [
        ("orphan", (str(tmp_path / "yolo/labels/val/old.txt"),)),
    ]
    assert (check.format, check.splits[1]["boxes"]) == ("yolo", 3)


def test_every_format_gives_the_same_answer(folder: Folder, tmp_path: Path):
    for i in range(3):
        folder.box("val", 3, 1, 9 * i, 0, 3, 3)
    folder.box("train", 3, 0, 0, 0, 128, 96)
    wanted = folder.check(image_size=(64, 64)).to_dict()
    for form in ("voc", "yolo"):
        fb.write_dataset(fb.load_dataset(folder.root), tmp_path / form, form)
        came = check_dataset(tmp_path / form, image_size=(64, 64)).to_dict()
        for key in ("splits", "balance", "sizes", "sides", "ratios", "classes"):
            assert came[key] == wanted[key]
        assert [(f["kind"], f["count"]) for f in came["findings"]] == [
            (f["kind"], f["count"]) for f in wanted["findings"]
        ]


def test_photos(shared: Path):
    """Counts against the annotation file itself, added up another way."""
    root = shared / "data" / "oi_vehicles"
    check = check_dataset(root)
    data = json.loads((root / "annotations/train.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    counts = Counter(names[a["category_id"]] for a in data["annotations"])
    assert {row["class"]: row["boxes"]["train"] for row in check.balance} == counts
    areas = [a["bbox"][2] * a["bbox"][3] for a in data["annotations"]]
    small = sum(a < 32**2 for a in areas)
    assert check.sizes[0]["boxes"]["train"] == small
    assert sum(row["boxes"]["train"] for row in check.sides) == len(areas)
    assert check.is_usable


class TestCommand:
    def test_prints_and_leaves_with_0(self, folder: Folder, cli):
        folder.box("val", 3, 1, 120, 80, 20, 20)
        folder.check()
        code, out, err = cli("data", "check", str(folder.root), "--image-size", "256")
        assert (code, err) == (0, "")
        assert "pets: coco, 2 classes" in out
        assert "found: val: 1 boxes that reach outside their image, which are clipped (outside)" in out
        assert f"{folder.image('val', 3)}: dog 120, 80 to 140, 100" in out
        assert "longer side in px of images of 256x256" in out

    def test_json_has_everything(self, folder: Folder, cli):
        folder.check()
        code, out, _ = cli("data", "check", str(folder.root), "--json", "--format", "coco")
        assert code == 0
        assert json.loads(out) == json.loads(json.dumps(folder.check().to_dict()))

    def test_leaves_with_1_where_a_search_would_refuse(self, folder: Folder, cli):
        folder.check()
        folder.image("val", 1).unlink()
        code, out, _ = cli("data", "check", str(folder.root))
        assert code == 1
        assert "refused: val: 1 images that cannot be read" in out

    def test_leaves_with_2_where_there_is_nothing_to_check(self, folder: Folder, cli, tmp_path: Path):
        for arguments, message in (
            ((str(tmp_path / "nowhere"),), "does not exist; expected a folder in one of these formats"),
            ((str(tmp_path),), "is in no known format"),
            ((str(folder.root), "--format", "cocoa"), "did you mean 'coco'"),
            ((str(folder.root), "--format", "coco", "--zero-based"), "option of coco data sets 'one_based'"),
            ((str(folder.root), "--image-size", "big"), "HEIGHTxWIDTH"),
        ):
            folder.check()
            code, out, err = cli("data", "check", *arguments)
            assert (code, out) == (2, "")
            assert message in err
            assert err.count("\n") == 1

    def test_convert(self, folder: Folder, cli, tmp_path: Path):
        folder.box("val", 3, 1, 0, 0, 50, 50, iscrowd=1)
        folder.check()
        target = tmp_path / "out"
        code, out, _ = cli("data", "convert", str(folder.root), "--to", "yolo", str(target))
        assert code == 0
        assert out.splitlines() == ["lost: val: 1 regions to ignore left out, which yolo cannot tell", str(target)]
        assert load_dataset(target).classes == ("cat", "dog")
        code, _, err = cli("data", "convert", str(folder.root), "--to", "yolo", str(target))
        assert (code, "not empty" in err) == (2, True)
        code, _, err = cli("data", "convert", str(folder.root), "--to", "tfrecord", str(target))
        assert (code, "unknown data set format 'tfrecord'" in err) == (2, True)

    def test_voc_options(self, folder: Folder, cli, tmp_path: Path):
        folder.check()
        fb.write_dataset(fb.load_dataset(folder.root), tmp_path / "voc", "voc")
        code, out, _ = cli("data", "check", str(tmp_path / "voc"), "--zero-based", "--keep-difficult", "--json")
        assert code == 0
        assert json.loads(out)["balance"][0]["boxes"] == {"train": 2, "val": 2}

    def test_help(self, cli):
        code, out, _ = cli("data", "--help")
        assert code == 0
        assert "check" in out
        assert "convert" in out
        assert "Exit code 0" in " ".join(cli("data", "check", "--help")[1].split())


def test_looking_at_data_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, fpn_bench.cli.data, fpn_bench.data.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
