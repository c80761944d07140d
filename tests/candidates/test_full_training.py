"""Full training on images: views, order, exactness whatever happens in between, and what is left of the backbone."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import fpn_bench as fb
from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.data.coco import load_coco
from fpn_bench.data.dataset import ImageRecord
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.errors import DataError, InputError, ProtocolError, TrialError
from fpn_bench.training.augment import TrainingImages, collate, item_seed, step_seed
from fpn_bench.training.cache import load_input
from fpn_bench.training.checkpoint import Checkpoint
from fpn_bench.training.full import FullTraining, _Batches
from fpn_bench.training.full_recipe import FullRecipe
from fpn_bench.training.processes import Processes
from fpn_bench.training.protocol import HeadConfig, TrainingRecipe
from fpn_bench.training.train import input_targets

SOURCE = BackboneSource("mobilenetv3_small_050")
PLAIN = {"flip": False, "scale": (1.0, 1.0), "photometric": False}
RECIPE = FullRecipe(epochs=2, batch_size=4, ema_decay=0.9)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = write_synthetic(
        tmp_path_factory.mktemp("data"), train_images=10, val_images=3, image_size=(80, 64), sides=(16, 48)
    )
    bench = fb.EvaluationContext(load_coco(folder), image_size=(64, 64), head=HeadConfig(convs=0))
    bench.load_backbone(SOURCE)
    return bench


def begun(bench, recipe=RECIPE, checkpoint=None, neck="fpn", **options):
    backbone = bench.load_backbone(SOURCE)
    candidate = bench.candidate(SOURCE, fb.create_graph(neck, backbone.features, channels=8))
    splits = bench.dataset.splits
    training = FullTraining(
        bench.detector(candidate),
        *(backbone, splits["train"], splits["val"]),
        **({"image_size": (64, 64), "recipe": recipe, "seed": 3} | options),
    )
    training.begin(checkpoint)
    return training


def weights(training):
    return {name: value.clone() for name, value in training.modules.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- views ------------------------------------------------------------------------------------------------------------


def images_of(bench, records=None, **changes):
    recipe = FullRecipe(**(PLAIN | changes))
    return TrainingImages(records or bench.dataset.splits["train"], (64, 64), bench.load_backbone(SOURCE), recipe, 0)


def test_without_augmentation_an_image_is_as_the_evaluation_sees_it(bench):
    images, records = images_of(bench), bench.dataset.splits["train"]
    for index, target in enumerate(input_targets(records, (64, 64), mirrored=False)):
        pixels, boxes = images[5, index]
        torch.testing.assert_close(pixels, load_input(records[index], (64, 64), bench.load_backbone(SOURCE)))
        torch.testing.assert_close(boxes["boxes"], target["boxes"])
        assert torch.equal(boxes["labels"], target["labels"])
        assert type(boxes["boxes"]) is torch.Tensor


def one_box(folder, box, size=(120, 90)) -> ImageRecord:
    """A black image with a white rectangle, and that as its only box; and a crowd region over all of it."""
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    Image.fromarray(pixels).save(folder / "one.png")
    boxes = np.array([box, (0, 0, width, height)], np.float32)
    areas = np.zeros(2, np.float32)
    return ImageRecord(1, folder / "one.png", size, boxes, np.array([2, 1]), areas, np.array([False, True]))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.7), (1.5, 2.5), (0.5, 2.0)])
def test_boxes_stay_on_what_they_are_of(bench, tmp_path, scale):
    record = one_box(tmp_path, (10, 20, 40, 80))
    images = images_of(bench, [record], flip=True, scale=scale)
    std = torch.tensor(bench.load_backbone(SOURCE).std)[:, None, None]
    mean = torch.tensor(bench.load_backbone(SOURCE).mean)[:, None, None]
    sides, gone = set(), 0
    for epoch in range(12):
        pixels, target = images[epoch, 0]
        rows, columns = torch.where(((pixels * std + mean) > 0.75).all(0))  # what is padded is grey
        if len(target["boxes"]) == 0:
            gone += 1
            assert len(rows) <= 64  # nothing, or a sliver a pixel wide
            continue
        seen = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
        torch.testing.assert_close(target["boxes"], seen.float(), atol=2.0, rtol=0)
        assert target["labels"].tolist() == [2]  # the crowd region is no target
        sides.add(target["boxes"].round().tolist()[0][0])
    assert len(sides) > 1
    assert gone < 12


def test_a_view_is_a_function_of_seed_epoch_and_image(bench):
    images = images_of(bench, flip=True, scale=(0.5, 2.0), photometric=True)
    before = torch.get_rng_state()
    first = images[1, 2][0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(images[1, 2][0], first)
    assert not torch.equal(images[2, 2][0], first)
    places = [item_seed(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    places += [step_seed(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    assert len(set(places)) == len(places)


def test_photometric_changes_pixels_and_no_boxes(bench):
    changed = [torch.equal(images_of(bench, photometric=True)[e, 0][0], images_of(bench)[e, 0][0]) for e in range(8)]
    assert not all(changed)
    assert torch.equal(images_of(bench, photometric=True)[0, 0][1]["boxes"], images_of(bench)[0, 0][1]["boxes"])


def test_a_batch_may_hold_images_without_boxes(bench, tmp_path):
    record = one_box(tmp_path, (10, 20, 40, 80))
    empty = replace(record, crowd=np.array([True, True]))
    images, targets = collate([images_of(bench, [record, empty])[0, i] for i in (0, 1)])
    assert images.shape == (2, 3, 64, 64)
    assert [len(t["boxes"]) for t in targets] == [1, 0]
    assert targets[1]["boxes"].shape == (0, 4)


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch_size", "count"), [(10, 4, 1), (10, 4, 3), (7, 7, 2), (5, 1, 1)])
def test_each_image_once_an_epoch_shared_out_among_processes(images, batch_size, count):
    recipe = FullRecipe(epochs=3, batch_size=batch_size)
    shares = [list(_Batches(images, recipe, 0, 0, Processes(rank, count))) for rank in range(count)]
    steps = len(shares[0]) // 3
    assert steps == -(-images // batch_size)
    orders = []
    for epoch in range(3):
        whole = [[i for share in shares for i in share[epoch * steps + k]] for k in range(steps)]
        assert all(len(batch) <= batch_size for batch in whole)
        assert {e for batch in whole for e, _ in batch} == {epoch}
        orders.append([i for batch in whole for _, i in batch])
        assert sorted(orders[-1]) == list(range(images))
    assert len({tuple(order) for order in orders}) > 1
    for first in (1, steps, steps + 1, 3 * steps):
        sampler = _Batches(images, recipe, 0, first, Processes(0, count))
        assert list(sampler) == shares[0][first:]
        assert len(sampler) == len(shares[0]) - first


def test_a_process_without_an_image_is_refused(bench):
    with pytest.raises(InputError, match="--batch-size"):
        begun(bench, processes=Processes(0, 4))


# -- exactness --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(bench):
    training = begun(bench)
    training.run()
    return training


def test_it_learns_from_what_it_is_given(bench, unbroken):
    assert [row["epoch"] for row in unbroken.rows] == [1, 2]
    assert unbroken.rows[1]["loss"] < unbroken.rows[0]["loss"]
    first = unbroken.rows[0]
    parts = first["loss_classification"] + first["loss_bbox_regression"] + first["loss_bbox_ctrness"]
    assert parts == pytest.approx(first["loss"])
    assert not unbroken.detector.training


@pytest.mark.parametrize("at", [1, 3, 4, 6])
def test_broken_off_anywhere_it_ends_the_same(bench, unbroken, tmp_path, at):
    """Three steps an epoch: within one, at an epoch's end, and at the very end."""
    checkpoint = Checkpoint(tmp_path / "c.pt", "id", every_s=0)

    def stop(progress):
        if progress.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begun(bench, checkpoint=checkpoint).run(checkpoint=checkpoint, on_progress=stop)
    torch.rand(5)
    again = begun(bench, checkpoint=checkpoint)
    assert again.step == at
    again.run(checkpoint=checkpoint, workers=at % 2)
    assert same(weights(again), weights(unbroken))
    told = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in again.rows]
    assert told == [{k: v for k, v in row.items() if k in told[0]} for row in unbroken.rows]


def test_neither_workers_nor_evaluations_are_noticed(bench, unbroken):
    training = begun(bench)
    training.run(workers=2, eval_every=2)
    assert same(weights(training), weights(unbroken))
    assert [row["ap"] is None for row in training.rows] == [True, False]


def test_another_seed_is_another_training(bench, unbroken):
    training = begun(bench, seed=4)
    training.run(eval_every=9)
    assert not same(weights(training), weights(unbroken))


def test_a_checkpoint_of_another_detector_is_refused(bench, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.pt", "id")
    checkpoint.write(begun(bench).state())
    with pytest.raises(ProtocolError, match="other weights"):
        begun(bench, checkpoint=checkpoint, neck="pafpn")


# -- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", ["none", 3])
def test_what_is_frozen_stays_and_norm_statistics_never_move(bench, freeze):
    before = {name: value.clone() for name, value in bench.load_backbone(SOURCE).state_dict().items()}
    training = begun(bench, RECIPE.model_copy(update={"freeze": freeze, "backbone_lr_factor": 1.0}))
    training.run(eval_every=9)
    after = training.trained_backbone().state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("running_" in name or "num_batches" in name for name in moved)
    assert ("model.conv_stem.weight" in moved) == (freeze == "none")
    assert all(torch.equal(before[name], value) for name, value in bench.load_backbone(SOURCE).state_dict().items())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_comes_near(bench, unbroken, amp):
    training = begun(bench, RECIPE.model_copy(update={"amp": amp}))
    training.run(eval_every=9)
    assert training.rows[0]["loss"] == pytest.approx(unbroken.rows[0]["loss"], rel=0.1)


def test_divergence_is_one_line(bench):
    with pytest.raises(TrialError, match=r"the loss became (nan|inf) in epoch \d of 2; try .*--learning-rate"):
        begun(bench, RECIPE.model_copy(update={"learning_rate": 1e30, "grad_clip_norm": 0.0})).run()


def test_an_image_that_vanishes_is_one_line(bench, tmp_path):
    gone = replace(bench.dataset.splits["train"][0], path=tmp_path / "gone.png")
    training = begun(bench)
    training.images.records = (gone,) * 10
    with pytest.raises(DataError, match=r"^image .*gone\.png was readable"):
        training.run(workers=1)


def test_recipes():
    short = TrainingRecipe(batch_size=16, learning_rate=1e-3, epochs=3)
    full = FullRecipe.after(short, epochs=5, freeze=3)
    assert (full.batch_size, full.learning_rate, full.epochs, full.freeze) == (16, 1e-3, 5, 3)
    for wrong in ({"scale": (2.0, 1.0)}, {"epochs": 0}, {"amp": "int8"}, {"freeze": "some"}, {"colour": True}):
        with pytest.raises(ValidationError):
            FullRecipe.after(short, **wrong)


# -- several processes ------------------------------------------------------------------------------------------------

FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
SCRIPT = """
import sys, torch
sys.path[:0] = {tests!r}
import test_full_training as here
from pathlib import Path
from fpn_bench.data.coco import load_coco
from fpn_bench.training.processes import Processes
import fpn_bench as fb

torch.set_num_threads(1)
bench = fb.EvaluationContext(load_coco({data!r}), image_size=(64, 64), head=here.HeadConfig(convs=0))
backbone = bench.load_backbone(here.SOURCE)
backbone.load_state_dict(torch.load({weights!r}))
processes = Processes.here()
with processes.joined(torch.device("cpu")):
    training = here.begun(bench, here.RECIPE.model_copy(update={{"freeze": {freeze!r}}}), processes=processes)
    training.run()
torch.save((training.rows, here.weights(training)), Path({to!r}) / f"rank{{processes.rank}}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["all", "none"])
def test_two_processes_are_one_with_the_whole_batch(bench, tmp_path, freeze):
    """Necks without batch norm: to rounding, for the losses are divided by the foreground of the whole batch."""
    data = bench.dataset.splits["train"][0].path.parents[1]
    weights_file = tmp_path / "backbone.pt"
    torch.save(bench.load_backbone(SOURCE).state_dict(), weights_file)
    (tmp_path / "script.py").write_text(
        SCRIPT.format(
            tests=FOLDERS,
            data=str(data),
            weights=str(weights_file),
            freeze=freeze,
            to=str(tmp_path),
        )
    )
    package = str(Path(fb.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "script.py")],
        env=os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    (rows, first), (others, second) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert same(first, second)
    assert [row["ap"] for row in others] == [None, None]
    alone = begun(bench, RECIPE.model_copy(update={"freeze": freeze}))
    alone.run()
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone.rows], rel=1e-4)
    for name, value in weights(alone).items():
        torch.testing.assert_close(first[name], value, rtol=1e-2, atol=1e-4)
