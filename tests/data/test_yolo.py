"""YOLO: data.yaml and what it may name, label files, and rows that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fpn_bench.data.formats import find_format, load_dataset
from fpn_bench.errors import DataError

SIZE = (40, 80)  # height, width
IMAGES = {"train": ["a", "b"], "val": ["c"]}
ROW = "1 0.5 0.5 0.25 0.5\n"  # 20 x 20 px around the centre


class Folder:
    """A small data set as Ultralytics lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for i, (split, stems) in enumerate(IMAGES.items()):
            (root / "images" / split).mkdir(parents=True)
            (root / "labels" / split).mkdir(parents=True)
            for j, stem in enumerate(stems):
                Image.new("RGB", SIZE[::-1], (i, j, 0)).save(root / "images" / split / f"{stem}.png")
                self.label(split, stem).write_text(ROW)
        self.config = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]}
        self.write()

    def write(self, **changes: object) -> None:
        self.config = {k: v for k, v in {**self.config, **changes}.items() if v is not ...}
        (self.root / "data.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))

    def label(self, split: str, stem: str) -> Path:
        return self.root / "labels" / split / f"{stem}.txt"

    def val(self):
        return load_dataset(self.root).splits["val"][0]

    def refused(self) -> str:
        with pytest.raises(DataError) as caught:
            load_dataset(self.root, "yolo")
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "pets")


@pytest.mark.parametrize("again", ["images/train/a.png", "./images/val/../train/a.png"])
def test_an_image_listed_twice_is_refused(folder: Folder, again: str):
    (folder.root / "train.txt").write_text(f"./images/train/a.png\nimages/train/b.png\n{again}\n")
    folder.write(train="train.txt")
    assert "a.png 2 times" in folder.refused()
    folder.write(train=["images/train", "images"])
    assert "expected each image once" in folder.refused()


def test_an_image_of_three_splits_is_named_with_the_first(folder: Folder):
    (folder.root / "images" / "test").mkdir()
    (folder.root / "labels" / "test").mkdir()
    for split in ("val", "test"):
        shutil.copy(folder.root / "images" / "train" / "a.png", folder.root / "images" / split / "same.png")
        folder.label(split, "same").write_text(ROW)
    folder.write(test="images/test")
    notes = load_dataset(folder.root).notes
    assert notes == ("val: 1 images are also in train", "test: 1 images are also in train")


def test_reads_what_is_there(folder: Folder):
    data = load_dataset(folder.root)
    assert (data.name, data.classes, data.notes) == ("pets", ("cat", "dog"), ())
    assert [r.path.name for r in data.splits["train"]] == ["a.png", "b.png"]
    record = data.splits["val"][0]
    assert record.boxes.tolist() == [[30, 10, 50, 30]]
    assert (record.labels.tolist(), record.areas.tolist(), record.crowd.tolist()) == ([1], [400], [False])
    assert record.size == SIZE
    assert load_dataset(folder.root / "data.yaml").hash == data.hash
    assert find_format(folder.root / "data.yaml").name == "yolo"


class TestWhatTheFileMayName:
    @pytest.mark.parametrize("case", ["list file", "several", "path", "old path", "export", "list of names"])
    def test_it_is_the_same_data_set(self, folder: Folder, tmp_path: Path, case: str):
        wanted = load_dataset(folder.root).hash
        if case == "list file":
            (folder.root / "train.txt").write_text("./images/train/a.png\n\nimages/train/b.png\n")
            (folder.root / "val.txt").write_text(f"{folder.root}/images/val/c.png\n")
            folder.write(train="train.txt", val="val.txt", test="")
        elif case == "several":
            (folder.root / "one.txt").write_text("./images/train/b.png\n")
            (folder.root / "images/train0").mkdir()
            (folder.root / "labels/train0").mkdir()
            for kind, suffix in (("images", "png"), ("labels", "txt")):
                shutil.move(folder.root / kind / "train" / f"a.{suffix}", folder.root / kind / "train0")
            folder.write(train=["images/train0", "one.txt"])
        elif case == "path":
            shutil.move(folder.root / "data.yaml", tmp_path / "data.yaml")
            folder.root, config = tmp_path, {**folder.config, "path": "pets"}
            (tmp_path / "data.yaml").write_text(yaml.safe_dump(config))
        elif case == "old path":
            folder.write(path="/gone/from/another/machine")
        elif case == "export":
            for split in IMAGES:
                (folder.root / split).mkdir()
                shutil.move(folder.root / "images" / split, folder.root / split / "images")
                shutil.move(folder.root / "labels" / split, folder.root / split / "labels")
            folder.write(train="../train/images", val="../val/images", test="../test/images", nc=2)
        else:
            folder.write(names={1: "dog", 0: "cat"}, nc=2, path=None, test=None, download="rm -rf /")
        data = load_dataset(folder.root)
        assert data.hash == wanted
        assert data.notes == (
            ("test: left out, for ../test/images of data.yaml does not exist",) if case == "export" else ()
        )

    def test_labels_beside_images(self, folder: Folder):
        wanted = load_dataset(folder.root).hash
        for split in IMAGES:
            shutil.move(folder.root / "images" / split, folder.root / split)
            for label in (folder.root / "labels" / split).iterdir():
                shutil.move(label, folder.root / split)
        folder.write(train="train", val="val")
        assert load_dataset(folder.root).hash == wanted

    def test_the_last_images_of_the_path_is_replaced(self, folder: Folder, tmp_path: Path):
        shutil.copytree(folder.root, tmp_path / "images" / "images.v2")
        assert load_dataset(tmp_path / "images" / "images.v2").hash == load_dataset(folder.root).hash

    @pytest.mark.parametrize("layout", ["images/{}", "{}/images", "{}"])
    def test_a_class_list_does_without_the_file(self, folder: Folder, tmp_path: Path, layout: str):
        other = tmp_path / "other"
        for split, name in (("train", "train"), ("val", "valid")):
            images = other / layout.format(name)
            labels = Path(str(images).replace("images", "labels"))
            shutil.copytree(folder.root / "images" / split, images)
            shutil.copytree(folder.root / "labels" / split, labels, dirs_exist_ok=True)
        (other / "classes.txt").write_text("cat\ndog\n")
        assert find_format(other).name == "yolo"
        assert load_dataset(other).hash == load_dataset(folder.root).hash

    def test_names_are_text_whatever_yaml_thinks(self, folder: Folder):
        (folder.root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [no, 1.50]\n")
        assert load_dataset(folder.root).classes == ("no", "1.50")


class TestLabelFiles:
    def test_empty_and_missing_ones_are_images_without_boxes(self, folder: Folder):
        folder.label("train", "a").write_text("\n \n")
        folder.label("train", "b").unlink()
        shutil.copy(folder.root / "images/train/a.png", folder.root / "images/train/d.png")
        folder.label("train", "d").write_text(ROW)
        data = load_dataset(folder.root)
        assert [len(r.boxes) for r in data.splits["train"]] == [0, 0, 1]
        assert data.notes == ("train: 1 images have no label file, thus no boxes",)

    def test_none_at_all_is_a_mistake(self, folder: Folder):
        folder.label("val", "c").unlink()
        assert f"none of the 1 images of {folder.root / 'images/val'} has a label file" in folder.refused()
        assert str(folder.label("val", "c")) in folder.refused()

    def test_a_test_split_may_keep_its_labels_to_itself(self, folder: Folder):
        shutil.copytree(folder.root / "images/val", folder.root / "images/test")
        folder.write(test="images/test")
        data = load_dataset(folder.root)
        assert list(data.splits) == ["train", "val"]
        assert data.notes == ("test: left out, for none of its 1 images has a label file",)

    def test_outlines_become_boxes(self, folder: Folder):
        folder.label("val", "c").write_text("0 0.1 0.5 0.25 0.2 0.5 0.9\n1 .5 .5 .75 .5 .75 .6 .5 .6\n")
        record = folder.val()
        np.testing.assert_allclose(record.boxes, [[8, 8, 40, 36], [40, 20, 60, 24]], atol=1e-5)
        assert load_dataset(folder.root).notes == ("val: 2 outlines became the boxes around them",)

    def test_boxes_over_the_border_are_clipped(self, folder: Folder):
        folder.label("val", "c").write_text("0 0.0 0.5 0.5 1.0\n1.0 1.005 0.5 0.5 0.5\n")
        assert folder.val().boxes.tolist() == [[0, 0, 20, 40], [pytest.approx(60.4), 10, 80, 30]]
        assert load_dataset(folder.root).notes == ("val: 2 boxes reaching outside their image clipped",)

    def test_decimals_of_a_whole_pixel_are_a_whole_pixel(self, folder: Folder):
        """One pixel of a picture 7 wide, as far as 17 digits go, is no less than the 1 pixel that is kept."""
        Image.new("RGB", (7, 7)).save(folder.root / "images/val/c.png")
        rows = [f"0 {(x + 0.5) / 7!r} {0.5!r} {1 / 7!r} {1 / 7!r}\n" for x in range(7)]
        folder.label("val", "c").write_text("".join(rows))
        assert folder.val().boxes.tolist() == [[x, 3, x + 1, 4] for x in range(7)]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("cat 0.5 0.5 0.1 0.1", "expected numbers, class cx cy w h, got 'cat 0.5 0.5 0.1 0.1'"),
            ("0,0.5,0.5,0.1,0.1", "expected numbers"),
            ("2 0.5 0.5 0.1 0.1", "expected a class from 0 to 1, the number of a name, got 2"),
            ("-1 0.5 0.5 0.1 0.1", "the number of a name, got -1"),
            ("0.5 0.5 0.5 0.1 0.1", "the number of a name, got 0.5"),
            ("nan 0.5 0.5 0.1 0.1", "the number of a name, got nan"),
            ("0 0.5 nan 0.1 0.1", "expected finite numbers, class cx cy w h, got '0 0.5 nan 0.1 0.1'"),
            ("0 0.5 inf 0.1 0.1", "expected finite numbers"),
            ("0 40 20 20 20", "expected parts of the image's width and height, from 0 to 1, not pixels, got 40"),
            ("0 0.5 0.5 -0.1 0.1", "not pixels, got -0.1"),
            ("0 0.5 0.5 0.1", "points x y, got 4 values"),
            ("0", "points x y, got 1 values"),
            ("0 0.5 0.5 0.1 0.1 0.9", "points x y, got 6 values"),
        ],
    )
    def test_bad_rows_are_named_with_file_and_line(self, folder: Folder, row: str, message: str):
        folder.label("val", "c").write_text(f"{ROW}\n{row}\n")
        assert folder.refused().startswith(f"{folder.label('val', 'c')}, line 3: ")
        assert message in folder.refused()

    def test_and_counted(self, folder: Folder):
        folder.label("train", "a").write_text("7\n")
        folder.label("train", "b").write_text("x\ny\n")
        assert folder.refused().endswith("(and 2 more bad rows in train)")

    def test_no_text(self, folder: Folder):
        folder.label("val", "c").write_bytes(b"\xff\xfe\x01")
        assert f"label file {folder.label('val', 'c')} is no text in UTF-8" in folder.refused()

    def test_an_image_that_is_turned_is_refused(self, folder: Folder):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", SIZE[::-1]).save(folder.root / "images/val/c.png", exif=exif)
        assert "c.png has an EXIF orientation" in folder.refused()
        assert "exif_transpose" in folder.refused()


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "holds no mapping"),
            ("- a", "holds no mapping"),
            ("a: b\nc: [", "line 2, column 5: not valid YAML"),
            ("a: " + "[" * 600, "nested deeper than 100 levels"),
            ("a: &a !!python/object/apply:os.system ['false']\nnames: [x]", "unknown tag '!!python/object/apply"),
            ("train: images/train\nval: images/val", "names: expected a list of class names"),
            ("names: [[a], b]", "names: expected a list of class names"),
            ("names: {0: a, 2: b}", "names: expected the numbers 0 to 1"),
            ("names: [a, a]", "expected each class once, got 'a' 2 times"),
            ("names: []", "expected at least one class, got none"),
            ("names: ['', a]", "the name of class 0 is empty"),
            ("names: [a]\nnc: 2", "nc: expected 1, the number of names, got 2"),
            ("names: [a]\ntrain: {a: b}", "train: expected a path, got a dict"),
            ("names: [a]\ntrain: [{a: b}]", "train: expected a folder, a list of folders"),
            ("names: [a]\ntrain: nowhere", "train: nowhere does not exist (looked in "),
            ("names: [a]\npath: [x]", "path: expected a path, got a list"),
            ("names: [a, b]\ntrain: images/train", "has no val split: expected train and val, got train"),
            ("names: [a, b]\ntrain: labels", "labels: expected at least one image, got none"),
            ("names: [a, b]\ntrain: empty.txt", "empty.txt: expected at least one image, got none"),
            ("names: [a]\nkpt_shape: [17, 3]", "describes key points"),
        ],
    )
    def test_files(self, folder: Folder, text: str, message: str):
        (folder.root / "empty.txt").write_text("\n")
        (folder.root / "data.yaml").write_text(text)
        assert message in folder.refused()
        assert str(folder.root) in folder.refused()

    def test_neither_file(self, folder: Folder):
        (folder.root / "data.yaml").unlink()
        assert "has neither data.yaml nor classes.txt" in folder.refused()

    def test_two_files(self, folder: Folder):
        shutil.copy(folder.root / "data.yaml", folder.root / "dataset.yaml")
        assert "has data.yaml and dataset.yaml: name the one that is meant" in folder.refused()
        assert load_dataset(folder.root / "dataset.yaml").notes == ()

    @pytest.mark.parametrize("name", ["a\0b", "x" * 300, "images/val/" + "y" * 300 + ".png"])
    def test_a_list_of_what_cannot_be_names(self, folder: Folder, name: str):
        (folder.root / "val.txt").write_text(f"./images/val/c.png\n{name}\n")
        folder.write(val="val.txt")
        assert "cannot be read" in folder.refused()

    def test_a_split_of_what_cannot_be_a_name(self, folder: Folder):
        folder.write(val="a\0b")
        assert "val: a\0b does not exist" in folder.refused()

    def test_a_listed_image_that_is_not_there(self, folder: Folder):
        (folder.root / "val.txt").write_text("./images/val/c.png\nimages/val/gone.png\n")
        folder.write(val="val.txt")
        assert f"image {folder.root / 'images/val/gone.png'} of {folder.root / 'val.txt'} cannot be read" in (
            folder.refused()
        )
