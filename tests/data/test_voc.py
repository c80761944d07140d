"""Pascal VOC: the devkit's folder and simpler ones, its pixels, difficult objects, and files that lie or attack."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fpn_bench.data.formats import find_format, load_dataset, write_dataset
from fpn_bench.errors import DataError

SIZE = (40, 60)  # height, width
SIZE_XML = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def an_object(name: str = "cat", box: tuple[object, ...] = (1, 1, 60, 40), more: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def an_xml(*objects: str, size: str = SIZE_XML, name: str = "x.jpg") -> str:
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


class Devkit:
    """A small data set as the devkit lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        for i, stem in enumerate(("a1", "a2", "b1")):
            Image.new("RGB", SIZE[::-1], (i, 0, 0)).save(root / "JPEGImages" / f"{stem}.png")
            self.write(stem, an_object("dog" if stem == "a2" else "cat", (11, 6, 30, 25)))
        (root / "ImageSets/Main/train.txt").write_text("a2\na1\n")
        (root / "ImageSets/Main/val.txt").write_text("b1\n")
        (root / "ImageSets/Main/trainval.txt").write_text("not read")
        (root / "ImageSets/Main/cat_train.txt").write_text("a1  1\na2 -1\n")

    def xml(self, stem: str) -> Path:
        return self.root / "Annotations" / f"{stem}.xml"

    def write(self, stem: str, *objects: str, **keys: str) -> None:
        self.xml(stem).write_text(an_xml(*objects, **keys))

    def val(self, **options):
        return load_dataset(self.root, "voc", **options).splits["val"][0]

    def refused(self, **options) -> str:
        with pytest.raises(DataError) as caught:
            load_dataset(self.root, "voc", **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def devkit(tmp_path: Path) -> Devkit:
    return Devkit(tmp_path / "VOC2042")


def test_reads_what_is_there(devkit: Devkit):
    data = load_dataset(devkit.root)
    assert (data.name, data.classes, data.notes) == ("VOC2042", ("cat", "dog"), ())
    second, first = data.splits["train"]  # in the order of the list
    assert (first.path, second.path) == (devkit.root / "JPEGImages/a1.png", devkit.root / "JPEGImages/a2.png")
    assert (first.labels.tolist(), second.labels.tolist()) == ([0], [1])
    assert first.size == SIZE


class TestPixels:
    def test_are_counted_from_1_and_the_last_is_inside(self, devkit: Devkit):
        devkit.write("b1", an_object(box=(1, 1, 60, 40)), an_object(box=(7, 9, 7, 9)), an_object(box=(11, 6, 30, 25)))
        boxes = devkit.val().boxes
        # all of the image; the one pixel in column 7, row 9; 20 x 20 pixels, as xmax - xmin + 1 says
        assert boxes.tolist() == [[0, 0, 60, 40], [6, 8, 7, 9], [10, 5, 30, 25]]
        assert devkit.val().areas.tolist() == [2400, 1, 400]

    def test_or_corners_from_0(self, devkit: Devkit):
        devkit.write("b1", an_object(box=(0, 0, 60, 40)), an_object(box=(10.5, 5, 30.25, 25)))
        assert devkit.val(one_based=False).boxes.tolist() == [[0, 0, 60, 40], [10.5, 5, 30.25, 25]]

    def test_a_0_where_they_are_counted_from_1_is_noted(self, devkit: Devkit):
        devkit.write("b1", an_object(box=(0, 0, 59, 39)), an_object(box=(1, 0, 9, 9)), an_object())
        notes = load_dataset(devkit.root).notes
        assert notes[0].startswith("val: 2 boxes begin at pixel 0, which VOC, counting from 1, has not")
        assert notes[1] == "val: 2 boxes reaching outside their image clipped"
        assert load_dataset(devkit.root, one_based=False).notes == ()

    def test_floats(self, devkit: Devkit):
        devkit.write("b1", an_object(box=(" 1.5", "2e0", "30.125 ", "9")))
        assert devkit.val().boxes.tolist() == [[0.5, 1, 30.125, 9]]


class TestObjects:
    def test_difficult_ones_are_to_ignore(self, devkit: Devkit):
        hard, easy = "<difficult>1</difficult>", "<difficult>0</difficult>"
        devkit.write("b1", an_object(more=hard), an_object(more=easy), an_object())
        assert devkit.val().crowd.tolist() == [True, False, False]
        assert load_dataset(devkit.root).notes == ("val: 1 difficult objects are regions to ignore",)
        assert devkit.val(difficult="keep").crowd.tolist() == [False] * 3
        assert load_dataset(devkit.root, difficult="keep").notes == ()
        assert "'ignore' or 'keep'" in devkit.refused(difficult="drop")

    def test_parts_are_not_objects(self, devkit: Devkit):
        part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
        devkit.write("b1", an_object(box=(11, 6, 30, 25), more=part))  # before the object's own box
        assert devkit.val().boxes.tolist() == [[10, 5, 30, 25]]
        assert load_dataset(devkit.root).classes == ("cat", "dog")

    def test_deleted_ones_are_not_there(self, devkit: Devkit):
        devkit.write("b1", an_object("ghost", more="<deleted>1</deleted>"), an_object(more="<deleted>0</deleted>"))
        assert len(devkit.val().boxes) == 1

    @pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
    def test_the_size_may_be_missing(self, devkit: Devkit, size: str):
        devkit.write("b1", an_object(), size=size)
        assert devkit.val().size == SIZE

    def test_the_size_may_not_be_wrong(self, devkit: Devkit):
        devkit.write("b1", an_object(), size=SIZE_XML.replace("60", "61"))
        assert f"b1.png is 60x40 but {devkit.xml('b1')} says 61x40" in devkit.refused()

    def test_an_image_that_is_turned_wants_a_size(self, devkit: Devkit):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", SIZE[::-1]).save(devkit.root / "JPEGImages/b1.png", exif=exif)
        assert devkit.val().size == SIZE  # as stored: so are the boxes
        devkit.write("b1", an_object(), size="")
        assert "has an EXIF orientation" in devkit.refused()

    def test_the_class_list_orders_and_closes(self, devkit: Devkit):
        (devkit.root / "classes.txt").write_text("dog\nbird\ncat\n\n")
        assert load_dataset(devkit.root).classes == ("dog", "bird", "cat")
        devkit.write("b1", an_object("dgo"))
        assert f"{devkit.xml('b1')}: unknown class 'dgo': did you mean 'dog'?" in devkit.refused()
        (devkit.root / "classes.txt").write_text("dog\ndog\n")
        assert "expected each class once, got 'dog' 2 times" in devkit.refused()


@pytest.mark.parametrize("layout", ["beside", "folders", "valid", "devkit"])
def test_every_layout_is_the_same_data_set(devkit: Devkit, tmp_path: Path, layout: str):
    (devkit.root / "ImageSets/Main/train.txt").write_text("a1\na2\n")  # folders are read by name
    wanted = load_dataset(devkit.root)
    other = tmp_path / "other"
    if layout == "devkit":
        shutil.copytree(devkit.root, other / "VOC2042")
    else:
        for split, stems in {"train": ["a1", "a2"], "val": ["b1"]}.items():
            folder = other / ("valid" if (layout, split) == ("valid", "val") else split)
            images, xmls = (folder / "images", folder / "Annotations") if layout == "folders" else (folder, folder)
            for stem in stems:
                for place in (images, xmls):
                    place.mkdir(parents=True, exist_ok=True)
                shutil.copy(devkit.root / "JPEGImages" / f"{stem}.png", images)
                shutil.copy(devkit.xml(stem), xmls)
    assert find_format(other).name == "voc"
    assert load_dataset(other).hash == wanted.hash


def test_in_folders_an_image_without_xml_has_no_boxes_and_an_xml_wants_an_image(devkit: Devkit, tmp_path: Path):
    for split, stems in {"train": ["a1"], "val": ["b1", "a2"]}.items():
        (tmp_path / "flat" / split).mkdir(parents=True)
        for stem in stems:
            shutil.copy(devkit.root / "JPEGImages" / f"{stem}.png", tmp_path / "flat" / split)
            shutil.copy(devkit.xml(stem), tmp_path / "flat" / split)
    (tmp_path / "flat/val/a2.xml").unlink()
    data = load_dataset(tmp_path / "flat")
    assert [len(r.boxes) for r in data.splits["val"]] == [0, 1]
    assert data.notes == ("val: 1 images have no XML file, thus no boxes",)
    (tmp_path / "flat/val/b1.png").unlink()
    with pytest.raises(DataError, match=r"x\.jpg of .*b1\.xml cannot be read: no such file"):
        load_dataset(tmp_path / "flat")


class TestAttacks:
    """Nothing outside the file is read, nothing swells; each is one line."""

    def test_a_billion_laughs(self, devkit: Devkit):
        entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
        devkit.xml("b1").write_text(f"<?xml version='1.0'?><!DOCTYPE x [{entities}]>{an_xml(an_object('&a11;'))}")
        assert devkit.refused().startswith(f"annotation file {devkit.xml('b1')} declares a document type")

    def test_a_file_of_somebody_else(self, devkit: Devkit, tmp_path: Path):
        (tmp_path / "secret").write_text("cat")
        entity = f'<!ENTITY e SYSTEM "file://{tmp_path / "secret"}">'
        devkit.xml("b1").write_text(f"<!DOCTYPE annotation [{entity}]>{an_xml(an_object('&e;'))}")
        assert "declares a document type" in devkit.refused()

    def test_a_document_type_from_elsewhere(self, devkit: Devkit):
        devkit.xml("b1").write_text(f'<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/x.dtd">{an_xml(an_object())}')
        assert "declares a document type" in devkit.refused()

    def test_an_entity_that_is_not_declared(self, devkit: Devkit):
        devkit.write("b1", an_object("&e;"))
        assert "is not XML: undefined entity" in devkit.refused()

    def test_a_file_name_that_leads_away(self, devkit: Devkit):
        (devkit.root / "JPEGImages/b1.png").unlink()
        devkit.write("b1", an_object(), name="../../../etc/passwd")
        assert f"image {devkit.root / 'JPEGImages/passwd'} of" in devkit.refused()

    def test_depth(self, devkit: Devkit):
        devkit.xml("b1").write_text("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>")
        assert "has no boxes on its 1 images" in devkit.refused()


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"", "is not XML: no element found"),
            (b"<annotation>", "is not XML: no element found"),
            (b"<annotation></annotatoin>", "is not XML: mismatched tag"),
            (b"\xff\xfe\x00", "is not XML"),
            (b"<?xml version='1.0' encoding='nonsense'?><annotation/>", "is not XML: unknown encoding"),
            (b"<?xml version='1.0' encoding='shift_jis'?><annotation/>", "is not XML"),
            (b"<html/>", "is XML but not VOC: expected <annotation>, got <html>"),
            (an_xml("<object/>").encode(), "object 1 has no <name>"),
            (an_xml("<object><name>cat</name></object>").encode(), "object 1 (cat) has no <bndbox>"),
            (an_xml(an_object(), an_object(box=(1, "", 3, 4))).encode(), "pixels in <ymin>, got nothing"),
            (an_xml(an_object(box=(1, 2, "three", 4))).encode(), "pixels in <xmax>, got 'three'"),
            (an_xml(size="<size><width>wide</width></size>").encode(), "in pixels in <size>, got 'wide'"),
        ],
    )
    def test_files(self, devkit: Devkit, text: bytes, message: str):
        devkit.xml("b1").write_bytes(text)
        refused = devkit.refused()
        assert message in refused
        assert str(devkit.xml("b1")) in refused

    def test_no_numbers_are_dropped_and_counted(self, devkit: Devkit):
        devkit.write("b1", an_object(box=("nan", 1, 2, 3)), an_object(box=(30, 9, 9, 30)), an_object())
        assert load_dataset(devkit.root).notes == (
            "val: 1 boxes with a side under 1 px inside their image dropped",
            "val: 1 boxes with a coordinate that is no number dropped",
        )

    def test_lists(self, devkit: Devkit):
        main = devkit.root / "ImageSets/Main"
        (main / "val.txt").write_text("b1\nb2\n")
        assert f"{devkit.xml('b2')} does not exist" in devkit.refused()
        (main / "val.txt").write_text("b1\nb1\n")
        assert "expected each image once, got 'b1' 2 times" in devkit.refused()
        (main / "val.txt").write_text("\n")
        assert "expected at least one image, got none" in devkit.refused()
        (main / "val.txt").unlink()
        assert "has no val split: expected train and val, got train" in devkit.refused()
        assert "ImageSets/Main/val.txt" in devkit.refused()

    def test_two_images_of_one_stem(self, devkit: Devkit):
        Image.new("RGB", SIZE[::-1]).save(devkit.root / "JPEGImages/b1.jpg")
        assert "b1.jpg and" in devkit.refused()

    def test_several_years(self, devkit: Devkit, tmp_path: Path):
        shutil.copytree(devkit.root, tmp_path / "kit" / "VOC2007")
        shutil.copytree(devkit.root, tmp_path / "kit" / "VOC2012")
        with pytest.raises(DataError, match=r"holds 2 data sets \(VOC2007, VOC2012\): name one of them"):
            load_dataset(tmp_path / "kit")

    def test_a_class_that_no_line_holds(self, devkit: Devkit, tmp_path: Path):
        data = load_dataset(devkit.root)
        object.__setattr__(data, "classes", ("cat\n", "dog"))
        with pytest.raises(DataError, match="cannot be written as VOC"):
            write_dataset(data, tmp_path / "out", "voc")
        assert not (tmp_path / "out").exists()


def test_what_is_written_is_what_the_devkit_would_count(devkit: Devkit, tmp_path: Path):
    """Read by another, line by line: whole pixels as whole numbers from 1 to the last one inside."""
    from xml.etree import ElementTree

    data = load_dataset(devkit.root)
    data.splits["val"][0].boxes[:] = np.array([[0, 0, 60, 40.5]], np.float32)
    write_dataset(data, tmp_path / "out", "voc")
    root = ElementTree.parse(tmp_path / "out/Annotations/b1.xml").getroot()
    texts = {e.tag: e.text for e in root.find("object/bndbox")}
    assert texts == {"xmin": "1", "ymin": "1", "xmax": "60", "ymax": "40.5"}
    assert [root.findtext(f"size/{k}") for k in ("width", "height", "depth")] == ["60", "40", "3"]
    assert (tmp_path / "out/ImageSets/Main/train.txt").read_text() == "a2\na1\n"
