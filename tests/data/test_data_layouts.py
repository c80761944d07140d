"""Layouts of other tools: read, with a note; what is not read names what was found and what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fpn_bench.data.dataset import DetectionDataset
from fpn_bench.data.formats import find_format, load_dataset, write_dataset
from fpn_bench.errors import DataError, InputError
from fpn_bench.search import Space
from fpn_bench.search.detectors import load_dataset as load_of_space
from fpn_bench.search.detectors import with_overrides

SIZE = (40, 60)  # height, width
COUNT = {"train": 4, "val": 2}
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def coco(names: list[str], **changes: Any) -> dict[str, Any]:
    """One box of 20 x 10 px an image."""
    return {
        "images": [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "category_id": 1 + i % 2, "bbox": [5, 5, 20, 10]} for i, _ in enumerate(names)],
        "categories": CATEGORIES,
        **changes,
    }


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(path.name.encode()[-12:], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def names(split: str) -> list[str]:
    return [f"{split}{i}.png" for i in range(COUNT[split])]


ALL = [*names("train"), *names("val")]
XML = """<annotation><filename>{0}</filename><size><width>60</width><height>40</height></size><object><name>{1}</name>
<bndbox><xmin>6</xmin><ymin>6</ymin><xmax>25</xmax><ymax>15</ymax></bndbox></object></annotation>"""
ROW = "{} 0.25 0.25 0.3333333333333333 0.25\n"


def roboflow(root: Path) -> None:
    for split, folder in (("train", "train"), ("val", "valid")):
        for name in names(split):
            picture(root / folder / name)
        write(root / folder / "_annotations.coco.json", coco(names(split)))
    write(root / "README.roboflow.txt", "pets")


def roboflow_with_root(root: Path) -> None:
    roboflow(root)
    for folder, split in (("train", "train"), ("valid", "val")):
        categories = [{"id": 0, "name": "cat", "supercategory": "none"}, *CATEGORIES]
        write(root / folder / "_annotations.coco.json", coco(names(split), categories=categories))


def _annotations(root: Path, train: str, val: str) -> None:
    for split, file in (("train", train), ("val", val)):
        for name in names(split):
            picture(root / "images" / name)
        write(root / "annotations" / file, coco(names(split)))


def cvat(root: Path) -> None:
    _annotations(root, "instances_Train.json", "instances_Validation.json")


def valid(root: Path) -> None:
    _annotations(root, "train.json", "valid.json")


def label_studio(root: Path) -> None:
    """Splits made by hand, paths as the tool wrote them."""
    wrote = {
        "train": [
            f"{prefix}{name}"
            for prefix, name in zip(
                ("../../label-studio/media/upload/1/", "/data/local-files/?d=photos/", "images\\", "images/1a2b3c4d-"),
                names("train"),
                strict=True,
            )
        ],
        "val": [f"C:\\Users\\me\\pets\\{name}" for name in names("val")],
    }
    for split in COUNT:
        for name in names(split):
            picture(root / "images" / name)
        write(root / "annotations" / f"{split}.json", coco(wrote[split]))


def cvat_yolo(root: Path) -> None:
    for split in COUNT:
        for i, name in enumerate(names(split)):
            picture(root / f"obj_{split}_data" / name)
            write(root / f"obj_{split}_data" / f"{Path(name).stem}.txt", ROW.format(i % 2))
        listed = "".join(f"data/obj_{split}_data/{name}\n" for name in names(split))
        write(root / f"{'valid' if split == 'val' else split}.txt", listed)
    write(root / "obj.names", "cat\ndog\n")
    write(
        root / "obj.data",
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n",
    )


def cvat_ultralytics(root: Path) -> None:
    for split in COUNT:
        for i, name in enumerate(names(split)):
            picture(root / "images" / split / name)
            write(root / "labels" / split / f"{Path(name).stem}.txt", ROW.format(i % 2))
        write(root / f"{split}.txt", "".join(f"data/images/{split}/{name}\n" for name in names(split)))
    write(root / "data.yaml", "path: .\ntrain: train.txt\nval: val.txt\nnames: {0: cat, 1: dog}\n")


def cvat_voc(root: Path) -> None:
    for split, file in (("train", "Train"), ("val", "Validation")):
        for i, name in enumerate(names(split)):
            picture(root / "JPEGImages" / name)
            write(root / "Annotations" / f"{Path(name).stem}.xml", XML.format(name, ("cat", "dog")[i % 2]))
        write(root / "ImageSets/Main" / f"{file}.txt", "".join(f"{Path(name).stem}\n" for name in names(split)))


SPLIT = {
    roboflow: "train/_annotations.coco.json, valid/_annotations.coco.json",
    roboflow_with_root: "category 0 ('cat') without boxes left out",
    cvat: "instances_Train.json",
    valid: "annotations/valid.json",
    label_studio: "train: 4 images found by the end of their path (train0.png for ../../label-studio/media/upload/1/",
    cvat_yolo: "splits and classes are read from obj.data",
    cvat_ultralytics: "2 images found by the end of their path (val0.png for data/images/val/val0.png)",
    cvat_voc: "splits are read from Train.txt, Validation.txt",
}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> DetectionDataset:
    """The same pictures and boxes as our own layouts have them."""
    root = tmp_path_factory.mktemp("own")
    _annotations(root, "train.json", "val.json")
    return load_dataset(root)


@pytest.mark.parametrize("make", SPLIT, ids=lambda make: make.__name__)
def test_exports_with_splits_are_read_with_a_note(tmp_path: Path, make, wanted: DetectionDataset):
    make(tmp_path / "pets")
    data = load_dataset(tmp_path / "pets")
    assert data.hash == wanted.hash
    assert data.classes == ("cat", "dog")
    assert SPLIT[make] in "; ".join(data.notes)


def cvat_default(root: Path) -> None:
    for name in ALL:
        picture(root / "images" / "default" / name)
    write(root / "annotations" / "instances_default.json", coco(ALL))


def one_json(root: Path) -> None:
    for name in ALL:
        picture(root / "images" / name)
    write(root / "result.json", coco([f"images/{name}" for name in ALL]))
    write(root / "notes.json", {"categories": [], "info": {}})


def one_json_beside(root: Path) -> None:
    for name in ALL:
        picture(root / name)
    write(root / "_annotations.coco.json", coco(ALL))


def only_train(root: Path) -> None:
    for name in ALL:
        picture(root / "images" / name)
    write(root / "annotations" / "train.json", coco(ALL))


def yolo_of_cvat_default(root: Path) -> None:
    for i, name in enumerate(ALL):
        picture(root / "obj_train_data" / name)
        write(root / "obj_train_data" / f"{Path(name).stem}.txt", ROW.format(i % 2))
    write(root / "train.txt", "".join(f"data/obj_train_data/{name}\n" for name in ALL))
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")


def yolo_of_label_studio(root: Path) -> None:
    for i, name in enumerate(ALL):
        picture(root / "images" / name)
        write(root / "labels" / f"{Path(name).stem}.txt", ROW.format(i % 2))
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "notes.json", {"categories": [], "info": {}})


def voc_default(root: Path) -> None:
    for i, name in enumerate(ALL):
        picture(root / "JPEGImages" / name)
        write(root / "Annotations" / f"{Path(name).stem}.xml", XML.format(name, ("cat", "dog")[i % 2]))
    write(root / "ImageSets/Main/default.txt", "".join(f"{Path(name).stem}\n" for name in ALL))
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncat:1,2,3::\n")


def voc_of_label_img(root: Path) -> None:
    for i, name in enumerate(ALL):
        picture(root / name)
        write(root / f"{Path(name).stem}.xml", XML.format(name, ("cat", "dog")[i % 2]))


UNSPLIT = (
    cvat_default,
    one_json,
    one_json_beside,
    only_train,
    yolo_of_cvat_default,
    yolo_of_label_studio,
    voc_default,
    voc_of_label_img,
)


@pytest.mark.parametrize("make", UNSPLIT, ids=lambda make: make.__name__)
def test_exports_without_splits_want_a_fraction(tmp_path: Path, cli, make):
    root = tmp_path / "pets"
    make(root)
    code, out, err = cli("data", "check", str(root))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--val-fraction 0.2" in err
    data = load_dataset(root, val_fraction=0.34)
    assert {split: len(records) for split, records in data.splits.items()} == COUNT
    assert "val: 2 of the 6 images of" in "; ".join(data.notes)
    code, out, _ = cli("data", "check", str(root), "--val-fraction", "0.34", "--json")
    assert (code, [row["images"] for row in json.loads(out)["splits"]]) == (0, [4, 2])
    code, _, _ = cli("data", "convert", str(root), "--to", "coco", str(tmp_path / "out"), "--val-fraction", "0.34")
    assert code == 0
    assert {s: len(r) for s, r in load_dataset(tmp_path / "out").splits.items()} == COUNT
    space = Space.load("quickstart").replace(data={"kind": find_format(root).name, "val_fraction": 0.34})
    assert load_of_space(with_overrides(space, root, None, None, {})).hash == data.hash


def test_a_json_file_may_be_named_itself(tmp_path: Path):
    one_json(tmp_path / "pets")
    by_file = load_dataset(tmp_path / "pets" / "result.json", val_fraction=0.34)
    assert by_file.hash == load_dataset(tmp_path / "pets", val_fraction=0.34).hash


class TestHoldingOut:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.floats(0.001, 0.999), st.randoms())
    def test_depends_on_the_names_alone_and_leaves_both_some(self, tmp_path: Path, fraction: float, random):
        root = tmp_path / "pets"
        if not root.exists():
            only_train(root)
        order = list(ALL)
        random.shuffle(order)
        path = root / "annotations" / "train.json"
        write(path, coco(ALL))
        first = load_dataset(root, val_fraction=fraction).splits
        write(path, coco(order))
        second = load_dataset(root, val_fraction=fraction).splits
        for split in ("train", "val"):
            assert {r.path for r in first[split]} == {r.path for r in second[split]}
            assert len(first[split]) >= 1
        assert len(first["train"]) + len(first["val"]) == len(ALL)

    @pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan")])
    def test_of_no_fraction_is_refused(self, tmp_path: Path, fraction: float):
        only_train(tmp_path / "pets")
        with pytest.raises(DataError, match="val_fraction: expected a number above 0 and below 1"):
            load_dataset(tmp_path / "pets", val_fraction=fraction)

    def test_where_there_is_a_val_is_refused(self, tmp_path: Path):
        roboflow(tmp_path / "pets")
        with pytest.raises(DataError, match="has a val split: leave out --val-fraction"):
            load_dataset(tmp_path / "pets", val_fraction=0.2)


class TestNotFound:
    def test_a_parent_folder_says_what_was_meant(self, tmp_path: Path):
        for name, make in (("pets", roboflow), ("deeper/more", voc_default)):
            make(tmp_path / "sets" / name)
        with pytest.raises(DataError) as caught:
            load_dataset(tmp_path / "sets")
        assert f"did you mean {tmp_path}/sets/deeper/more (voc) or {tmp_path}/sets/pets (coco)?" in str(caught.value)

    def test_what_was_found_is_named(self, tmp_path: Path):
        write(tmp_path / "pets" / "boxes.csv", "a,b")
        (tmp_path / "pets" / "photos").mkdir()
        with pytest.raises(DataError, match=r"\(found: boxes\.csv, photos/\)"):
            load_dataset(tmp_path / "pets")
        (tmp_path / "pets" / "annotations").mkdir()
        write(tmp_path / "pets" / "annotations" / "keypoints.json", "{}")
        with pytest.raises(DataError, match=r"got annotations/, .* and annotations/: keypoints\.json"):
            load_dataset(tmp_path / "pets", "coco")

    def test_a_data_set_that_was_moved(self, tmp_path: Path):
        space = Space.load("quickstart").replace(data={"kind": "coco", "root": str(tmp_path / "gone")})
        with pytest.raises(InputError, match=r"gone of 'quickstart' does not exist; if it was moved.*--data DIR"):
            load_of_space(space)

    def test_two_categories_of_one_name_that_both_have_boxes(self, tmp_path: Path):
        roboflow(tmp_path / "pets")
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
        write(tmp_path / "pets/train/_annotations.coco.json", coco(names("train"), categories=categories))
        with pytest.raises(DataError, match="expected each category name once, got 'cat' more than once"):
            load_dataset(tmp_path / "pets")


class TestOutside:
    """Files outside the data set's folder are read only where the user allows their folder by name."""

    @pytest.fixture
    def secret(self, tmp_path: Path) -> Path:
        picture(tmp_path / "private" / "me.png")
        write(tmp_path / "private" / "me.txt", ROW.format(0))
        write(tmp_path / "private" / "me.xml", XML.format("me.png", "cat"))
        return tmp_path / "private" / "me.png"

    @staticmethod
    def coco_absolute(root: Path, secret: Path) -> None:
        valid(root)
        write(root / "annotations/train.json", coco([str(secret)]))

    @staticmethod
    def coco_climbs(root: Path, secret: Path) -> None:
        valid(root)
        write(root / "annotations/train.json", coco(["../../private/me.png"]))

    @staticmethod
    def coco_link(root: Path, secret: Path) -> None:
        valid(root)
        (root / "images/train0.png").unlink()
        (root / "images/train0.png").symlink_to(secret)

    @staticmethod
    def coco_linked_folder(root: Path, secret: Path) -> None:
        valid(root)
        (root / "images/more").symlink_to(secret.parent)
        write(root / "annotations/train.json", coco(["more/me.png"]))

    @staticmethod
    def yolo_list(root: Path, secret: Path) -> None:
        cvat_ultralytics(root)
        write(root / "train.txt", f"{secret}\n")

    @staticmethod
    def yolo_list_climbs(root: Path, secret: Path) -> None:
        cvat_ultralytics(root)
        write(root / "train.txt", "./../private/me.png\n")

    @staticmethod
    def yolo_folder(root: Path, secret: Path) -> None:
        cvat_ultralytics(root)
        write(root / "data.yaml", f"train: {secret.parent}\nval: val.txt\nnames: [cat, dog]\n")

    @staticmethod
    def yolo_path(root: Path, secret: Path) -> None:
        cvat_ultralytics(root)
        write(root / "data.yaml", f"path: {secret.parent.parent}\ntrain: private\nval: val.txt\nnames: [cat, dog]\n")

    @staticmethod
    def yolo_list_file(root: Path, secret: Path) -> None:
        cvat_ultralytics(root)
        write(secret.parent / "list.txt", "./me.png\n")
        write(root / "data.yaml", "train: ../private/list.txt\nval: val.txt\nnames: [cat, dog]\n")

    @staticmethod
    def yolo_label_link(root: Path, secret: Path) -> None:
        cvat_ultralytics(root)
        (root / "labels/train/train0.txt").unlink()
        (root / "labels/train/train0.txt").symlink_to(secret.with_suffix(".txt"))

    @staticmethod
    def voc_image_link(root: Path, secret: Path) -> None:
        cvat_voc(root)
        (root / "JPEGImages/train0.png").unlink()
        (root / "JPEGImages/train0.png").symlink_to(secret)

    @staticmethod
    def voc_list(root: Path, secret: Path) -> None:
        cvat_voc(root)
        write(root / "ImageSets/Main/Train.txt", "../../private/me\n")

    @staticmethod
    def voc_xml_link(root: Path, secret: Path) -> None:
        cvat_voc(root)
        (root / "Annotations/train0.xml").unlink()
        (root / "Annotations/train0.xml").symlink_to(secret.with_suffix(".xml"))

    CASES = (
        "coco_absolute",
        "coco_climbs",
        "coco_link",
        "coco_linked_folder",
        "yolo_list",
        "yolo_list_climbs",
        "yolo_folder",
        "yolo_path",
        "yolo_list_file",
        "yolo_label_link",
        "voc_image_link",
        "voc_list",
        "voc_xml_link",
    )

    @pytest.mark.parametrize("case", CASES)
    def test_is_refused_unless_allowed(self, tmp_path: Path, secret: Path, cli, case: str):
        root = tmp_path / "pets"
        make: Callable[[Path, Path], None] = getattr(self, case)
        make(root, secret)
        with pytest.raises(DataError, match="leads out of the data set's folder") as caught:
            load_dataset(root)
        assert "\n" not in str(caught.value)
        assert f"--allow-images-from {secret.parent}" in str(caught.value)
        with pytest.raises(DataError, match="leads out"):
            load_dataset(root, skip_unreadable=True)
        with pytest.raises(DataError, match="leads out"):
            load_dataset(root, allow_images_from=[root / "images" if (root / "images").is_dir() else root])
        code, _, err = cli("data", "check", str(root))
        assert (code, err.count("\n")) == (2, 1)
        if case != "voc_list":  # whose image is looked for in JPEGImages all the same
            data = load_dataset(root, allow_images_from=[secret.parent])
            assert len(data.splits["train"]) >= 1
            assert cli("data", "check", str(root), "--allow-images-from", str(secret.parent))[0] == 0
            space = Space.load("quickstart").replace(data={"kind": find_format(root).name, "root": str(root)})
            reading = {"allow_images_from": [str(secret.parent)]}
            assert load_of_space(with_overrides(space, None, None, None, reading)).hash == data.hash

    def test_a_device_is_not_read_though_its_folder_be_allowed(self, tmp_path: Path):
        root = tmp_path / "pets"
        valid(root)
        write(root / "annotations/train.json", coco(["/dev/zero"]))
        with pytest.raises(DataError, match="leads out of the data set's folder"):
            load_dataset(root)
        with pytest.raises(DataError, match=r"/dev/zero .*not a regular file"):
            load_dataset(root, allow_images_from=["/dev"])

    @pytest.mark.parametrize("kind", ["pipe", "device"])
    def test_annotations_that_are_no_regular_files(self, tmp_path: Path, kind: str):
        for make, file in (
            (valid, "annotations/train.json"),
            (cvat_ultralytics, "data.yaml"),
            (cvat_ultralytics, "train.txt"),
            (cvat_ultralytics, "labels/train/train0.txt"),
            (cvat_voc, "Annotations/train0.xml"),
            (cvat_voc, "ImageSets/Main/Train.txt"),
        ):
            root = tmp_path / file.replace("/", "-")
            make(root)
            (root / file).unlink()
            if kind == "pipe":
                os.mkfifo(root / file)
            else:
                (root / file).symlink_to("/dev/zero")
            with pytest.raises(DataError) as caught:
                load_dataset(root, "coco" if make is valid else "yolo" if make is cvat_ultralytics else "voc")
            assert "\n" not in str(caught.value)

    def test_an_allowed_folder_must_be_there(self, tmp_path: Path):
        valid(tmp_path / "pets")
        with pytest.raises(DataError, match=r"folder .*nowhere of --allow-images-from"):
            load_dataset(tmp_path / "pets", allow_images_from=[tmp_path / "nowhere"])

    def test_a_data_set_behind_a_link_is_its_own_folder(self, tmp_path: Path, wanted: DetectionDataset):
        valid(tmp_path / "real")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert load_dataset(tmp_path / "link").hash == wanted.hash

    def test_folders_named_by_splits_are_named_by_the_user(self, tmp_path: Path, wanted: DetectionDataset):
        valid(tmp_path / "real")
        shutil.move(tmp_path / "real/images", tmp_path / "elsewhere")
        splits = {s: (f"annotations/{f}.json", "../elsewhere") for s, f in (("train", "train"), ("val", "valid"))}
        assert load_dataset(tmp_path / "real", "coco", splits=splits).hash == wanted.hash


class TestTurned:
    @pytest.mark.parametrize("orientation", [2, 3, 4])
    @pytest.mark.parametrize("make", [valid, cvat_ultralytics, cvat_voc], ids=lambda make: make.__name__)
    def test_sizes_that_agree_tell_nothing_of_the_frame(self, tmp_path: Path, cli, make, orientation: int):
        make(tmp_path)
        self.turn(next(tmp_path.rglob("val1.png")), SIZE, orientation)
        with pytest.raises(DataError, match=r"has an EXIF orientation, and .* does not say whether its boxes"):
            load_dataset(tmp_path)
        code, out, _ = cli("data", "check", str(tmp_path))
        assert (code, "refused: val: 1 images whose size or orientation" in out) == (1, True)

    @pytest.mark.parametrize("orientation", [2, 5, 6, 7, 8])
    def test_nor_do_those_of_a_square(self, tmp_path: Path, orientation: int):
        valid(tmp_path)
        text = (tmp_path / "annotations/valid.json").read_text().replace('"width": 60', '"width": 40')
        write(tmp_path / "annotations/valid.json", text)
        for i in range(2):
            self.turn(tmp_path / f"images/val{i}.png", (40, 40), orientation)
        with pytest.raises(DataError, match="has an EXIF orientation"):
            load_dataset(tmp_path)

    @pytest.mark.parametrize("orientation", [0, 1, 9])
    def test_upright_ones_are_read(self, tmp_path: Path, orientation: int):
        valid(tmp_path)
        self.turn(tmp_path / "images/val1.png", SIZE, orientation)
        assert len(load_dataset(tmp_path).splits["val"]) == 2

    @staticmethod
    def turn(path: Path, size: tuple[int, int], orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size[::-1]).save(path, exif=exif)


class TestClassNames:
    @pytest.mark.parametrize("form", ["voc", "yolo"])
    def test_without_one_no_other_format_is_written(self, tmp_path: Path, cli, form: str):
        valid(tmp_path / "pets")
        for file in ("train", "valid"):
            path = tmp_path / "pets/annotations" / f"{file}.json"
            write(path, path.read_text().replace('"dog"', '""'))
        code, _, err = cli("data", "convert", str(tmp_path / "pets"), "--to", form, str(tmp_path / "out"))
        assert (code, err.count("\n")) == (2, 1)
        assert f"class 1 ('') cannot be written as {form.upper()}: give it a name" in err
        assert not (tmp_path / "out").exists()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(st.text(max_size=6) | st.sampled_from(["no", "1e3", "~", " a", "a ", "\ud800", "0", "a: b", "#"]),
                 min_size=2, max_size=2, unique=True),
        st.sampled_from(["coco", "voc", "yolo"]),
    )  # fmt: skip
    def test_are_read_again_or_not_written(self, tmp_path: Path, wanted: DetectionDataset, classes, form: str):
        data = DetectionDataset("x", tuple(classes), wanted.splits, wanted.hash)
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        try:
            write_dataset(data, out, form)
        except DataError:
            assert not out.exists()
            return
        if form != "coco" or "\ud800" not in "".join(classes):
            assert load_dataset(out).classes == data.classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nc: 2.0", None),
        ("nc: 02", None),
        ("nc: 0x2", None),
        ("nc: '2'", None),
        ("nc: 3", "nc: expected 2, the number of names, got 3"),
        ("nc: two", "nc: expected the number of classes, 2, got 'two'"),
        ("nc: 2.5", "nc: expected the number of classes, 2, got '2.5'"),
        ("nc: 1:2", "nc: expected the number of classes, 2, got '1:2'"),
        ("nc: true", "nc: expected the number of classes, 2, got 'true'"),
        ("nc: [2]", "nc: expected the number of classes"),
        ("nc: 2\nnc: 2", "key 'nc' occurs twice"),
        ("name: &a [*a]", "contains itself"),
        ("x: " + "[" * 2000, "nested deeper than 100 levels"),
    ],
)
def test_the_number_of_classes_is_a_number(tmp_path: Path, text: str, message: str | None):
    cvat_ultralytics(tmp_path)
    config = yaml.safe_dump({"train": "train.txt", "val": "val.txt", "names": ["cat", "dog"]})
    write(tmp_path / "data.yaml", f"{config}{text}\n")
    if message is None:
        assert load_dataset(tmp_path).classes == ("cat", "dog")
        return
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
