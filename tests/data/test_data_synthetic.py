"""The drawn set: what it promises of sizes, boxes and sameness; that it is written whole or not at all."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpn_bench.data import synthetic
from fpn_bench.data.coco import load_coco
from fpn_bench.data.images import load_image
from fpn_bench.data.synthetic import CLASSES, SHAPES, TEXTURES, draw_scene, write_synthetic
from fpn_bench.errors import DataError

SMALL = {"train_images": 6, "val_images": 3, "image_size": (64, 96), "sides": (10, 60)}


@pytest.fixture(scope="module")
def default_set(tmp_path_factory: pytest.TempPathFactory):
    return load_coco(write_synthetic(tmp_path_factory.mktemp("synthetic")))


def test_default_set_is_read_without_a_change(default_set):
    assert default_set.classes == CLASSES
    assert len(CLASSES) == len(SHAPES) * len(TEXTURES)
    assert default_set.notes == ()
    for split, least in (("train", 100), ("val", 50)):
        records = default_set.splits[split]
        counts = np.bincount(np.concatenate([r.labels for r in records]), minlength=len(CLASSES))
        assert counts.min() >= least // len(CLASSES), "every class is there"
        assert all(1 <= len(r.boxes) <= 5 for r in records)


def test_every_class_is_spread_over_three_octaves_of_size(default_set):
    records = default_set.splits["train"]
    sides = np.concatenate([(r.boxes[:, 2:] - r.boxes[:, :2]).max(1) for r in records])
    labels = np.concatenate([r.labels for r in records])
    for label in range(len(CLASSES)):
        octaves = np.log2(sides[labels == label])
        assert octaves.max() - octaves.min() >= 3
        # and about evenly: each third of the scale holds a fair share (the largest find a place less often)
        shares = np.histogram(octaves, bins=3, range=(math.log2(10), math.log2(125)))[0] / len(octaves)
        assert shares.min() >= 0.15, CLASSES[label]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(40, 150), width=st.integers(40, 150), high=st.integers(12, 40))
def test_boxes_are_tight_and_inside(seed: int, height: int, width: int, high: int):
    rng = np.random.Generator(np.random.PCG64(seed))
    pixels, boxes, labels, areas = draw_scene(rng, (height, width), (10, high), (1, 6), (0, 5))
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    assert 1 <= len(boxes) == len(labels) == len(areas) <= 6
    for (x1, y1, x2, y2), label, area in zip(boxes, labels, areas, strict=True):
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert max(x2 - x1, y2 - y1) <= math.ceil(high * math.sqrt(2)) + 1
        assert 0 < area <= (x2 - x1) * (y2 - y1)
        assert 0 <= label < len(CLASSES)


@pytest.mark.parametrize("seed", range(12))
def test_a_box_ends_where_the_picture_changes(seed: int):
    def scene(objects: tuple[int, int]):
        return draw_scene(np.random.Generator(np.random.PCG64(seed)), (96, 96), (16, 60), objects, (3, 3))

    pixels, (box,), _, (area,) = scene((1, 1))
    without = scene((0, 0))[0]  # the same ground and clutter, other noise
    changed = (np.abs(pixels.astype(int) - without) > 12).any(axis=2)  # noise is within 6 of either
    ys, xs = np.nonzero(changed)
    seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    np.testing.assert_allclose(seen, box, atol=1)  # a border pixel may be less than half covered
    assert changed.sum() == pytest.approx(area, rel=0.2)


def test_equal_settings_are_equal_data_and_others_are_not(tmp_path: Path):
    first = load_coco(write_synthetic(tmp_path / "a", **SMALL))
    second = load_coco(write_synthetic(tmp_path / "b", **SMALL))
    assert first.hash == second.hash
    assert first.name == second.name
    others = [{"seed": 1}, {"image_size": (96, 64)}, {"sides": (10, 50)}, {"objects": (2, 5)}, {"clutter": (0, 0)}]
    hashes = {load_coco(write_synthetic(tmp_path / "a", **{**SMALL, **other})).hash for other in others}
    assert len(hashes) == len(others)
    assert first.hash not in hashes


def test_drawing_is_the_same_on_every_machine(tmp_path: Path):
    """A change of this hash changes every protocol that stands on the set: count GENERATOR_VERSION up with it."""
    assert synthetic.GENERATOR_VERSION == 1
    assert (
        load_coco(write_synthetic(tmp_path, **SMALL)).hash
        == "ce4ab34f1acf7abc3bb1f316f3dc2dc500e7546a52706f3a2b8d7bc0c5799b00"
    )


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path):
    few = load_coco(write_synthetic(tmp_path, **SMALL)).splits
    more = load_coco(write_synthetic(tmp_path, **{**SMALL, "train_images": 8})).splits
    for split in few:
        for one, other in zip(few[split], more[split], strict=False):
            assert one.path.read_bytes() == other.path.read_bytes()
            np.testing.assert_array_equal(one.boxes, other.boxes)
    assert not np.array_equal(*(np.asarray(load_image(few[split][0])) for split in few))


def test_a_set_that_is_there_is_not_drawn_again(tmp_path: Path):
    calls = []
    folder = write_synthetic(tmp_path, **SMALL, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 9) for i in range(1, 10)]
    written = (folder / "settings.json").stat().st_mtime_ns
    assert write_synthetic(tmp_path, **SMALL, on_progress=lambda *_: pytest.fail("drawn again")) == folder
    assert (folder / "settings.json").stat().st_mtime_ns == written
    assert json.loads((folder / "settings.json").read_text())["sides"] == [10, 60]


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path, **SMALL, on_progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert load_coco(write_synthetic(tmp_path, **SMALL)).notes == ()


def _write(root: Path) -> Path:
    return write_synthetic(root, **SMALL)


def test_processes_that_start_together_agree(tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = set(pool.map(_write, [tmp_path] * 4, chunksize=1))
    assert len(folders) == 1
    assert list(tmp_path.iterdir()) == list(folders)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": (4, 60)}, r"expected sides with 8 <= smallest .* got \(4, 60\)"),
        ({"sides": (40, 20)}, "smallest <= largest"),
        ({"sides": (10, 65)}, "largest <= 64"),
        ({"train_images": 0}, "expected at least 1 train and 1 val image, got 0 and 3"),
        ({"val_images": 0}, "expected at least 1 train and 1 val image"),
        ({"seed": -1}, "expected seed to be 0 or more, got -1"),
        ({"objects": (0, 3)}, r"objects \(0, 3\)"),
        ({"objects": (3, 2)}, r"objects \(3, 2\)"),
        ({"clutter": (-1, 2)}, r"clutter \(-1, 2\)"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(tmp_path: Path, options, message: str):
    with pytest.raises(DataError, match=message):
        write_synthetic(tmp_path, **{**SMALL, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written under .*file: "):
        write_synthetic(tmp_path / "file", **SMALL)
