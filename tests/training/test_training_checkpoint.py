"""Trainings that pause, or are broken off, go on as if nothing had happened: to the bit."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fpn_bench as fb
from fpn_bench.backbones import create_backbone
from fpn_bench.backbones.split import split_backbone
from fpn_bench.data.coco import load_coco
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.detection.detector import Detector
from fpn_bench.errors import InputError
from fpn_bench.training import (
    Checkpoint,
    FeatureSource,
    HeadConfig,
    TrainingRecipe,
    TrainingResult,
    seeded,
    train_detector,
)
from fpn_bench.training.checkpoint import CheckpointFolder

SIZE = (64, 64)
EPOCHS = 8
RECIPE = TrainingRecipe(epochs=EPOCHS, batch_size=4, ema_decay=0.8)


class Held:
    """A provider that computes each map once."""

    def __init__(self, source: FeatureSource) -> None:
        self.records, self.image_size = source.records, source.image_size
        self.features, self.mirror = source.features, source.mirror
        images = range(len(self.records))
        self.maps = [source.batch(images, [mirrored] * len(self.records)) for mirrored in (False, True)]

    def batch(self, indices, mirrored=False) -> tuple[Tensor, ...]:
        sides = torch.as_tensor(mirrored).expand(len(indices))
        return tuple(
            torch.stack([self.maps[int(side)][level][i] for i, side in zip(indices, sides, strict=True)])
            for level in range(len(self.features))
        )


class Dropped(nn.Module):
    """A trained part of a backbone whose passes are random."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [nn.functional.dropout(x, 0.2, self.training) for x in maps]


class Setting:
    """A detector to be trained on synthetic images, behind one of three kinds of backbone; always the same."""

    def __init__(self, folder: Path, kind: str = "frozen") -> None:
        dataset = load_coco(
            write_synthetic(folder, train_images=10, val_images=6, image_size=SIZE, sides=(16, 48)), name="tiny"
        )
        self.classes = len(dataset.classes)
        self.backbone = create_backbone("test_resnet", image_size=SIZE)
        self.split = split_backbone(self.backbone, 3 if kind == "partly frozen" else "all", SIZE)
        self.kind = kind
        self.train, self.val = (
            Held(FeatureSource(self.split.prefix, dataset.splits[name], image_size=SIZE, mirror=True))
            for name in ("train", "val")
        )

    def run(self, recipe: TrainingRecipe = RECIPE, **options) -> tuple[TrainingResult, dict[str, Tensor]]:
        """The result and the weights; everything but the checkpoint is made anew."""
        with seeded(5):
            graph = fb.create_graph("fpn", self.backbone.features, channels=8, norm="batch")
            detector = Detector(fb.build_neck(graph), self.classes, HeadConfig(convs=1))
        fresh = split_backbone(create_backbone("test_resnet", image_size=SIZE), 3, SIZE).suffix
        backbone = {"frozen": None, "partly frozen": fresh, "dropout": Dropped()}[self.kind]
        result = train_detector(detector, self.train, self.val, recipe=recipe, seed=5, backbone=backbone, **options)
        return result, nn.ModuleList([detector, *([backbone] if backbone else [])]).state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def setting(folder: Path) -> Setting:
    return Setting(folder)


@pytest.fixture(scope="module")
def unbroken(setting: Setting) -> tuple[TrainingResult, dict[str, Tensor]]:
    return setting.run()


def assert_same(one: tuple[TrainingResult, dict[str, Tensor]], other: tuple[TrainingResult, dict[str, Tensor]]) -> None:
    assert one[0].curve == other[0].curve
    assert repr(one[0].ap) == repr(other[0].ap)  # NaN where there are no objects of a size
    assert list(one[1]) == list(other[1])
    assert [name for name in one[1] if not torch.equal(one[1][name], other[1][name])] == []


@pytest.mark.parametrize(
    ("kind", "ema_decay", "optimizer"),
    [
        ("frozen", 0.8, "adamw"), ("frozen", 0.0, "adamw"), ("frozen", 0.8, "muon"),
        ("partly frozen", 0.8, "adamw"), ("partly frozen", 0.0, "adamw"), ("partly frozen", 0.8, "muon"),
        ("dropout", 0.8, "adamw"), ("dropout", 0.0, "adamw"),
    ],
)  # fmt: skip
def test_paused_after_1_2_and_4_of_8_epochs_it_is_the_unbroken_one(
    folder: Path, tmp_path: Path, kind: str, ema_decay: float, optimizer: str
) -> None:
    setting = Setting(folder, kind)
    recipe = RECIPE.model_copy(update={"ema_decay": ema_decay, "optimizer": optimizer})
    whole = setting.run(recipe, ap_epochs=(1, 2, 4))
    file = tmp_path / "new" / "one.pt"
    aps = []
    for reached, epochs in ((0, 1), (1, 2), (2, 4), (4, 8)):
        assert file.exists() == (reached > 0)
        torch.rand(17)  # whatever else happens in the process
        parts = setting.run(recipe, epochs=epochs, checkpoint=Checkpoint(file, "one"))
        assert (parts[0].epochs, parts[0].epochs_trained) == (epochs, epochs - reached)
        assert parts[0].steps == (epochs - reached) * 3
        aps.append((epochs, parts[0].ap.ap))
    assert_same(parts, whole)
    assert parts[0].aps == whole[0].aps == tuple(aps)
    assert parts[0].val_losses == whole[0].val_losses
    assert [epoch for epoch, _ in whole[0].val_losses] == [1, 2, 4, 8]
    assert list(file.parent.iterdir()) == []  # a whole training leaves nothing behind


def test_evaluations_on_the_way_change_nothing(
    setting: Setting, unbroken: tuple[TrainingResult, dict[str, Tensor]]
) -> None:
    often = setting.run(ap_epochs=range(1, EPOCHS + 1))
    assert_same(often, unbroken)
    assert [epoch for epoch, _ in often[0].aps] == list(range(1, EPOCHS + 1))
    assert len({ap for _, ap in often[0].aps}) > 2
    assert unbroken[0].aps == ((EPOCHS, unbroken[0].ap.ap),) == often[0].aps[-1:]
    assert (unbroken[0].epochs, unbroken[0].epochs_trained) == (EPOCHS, EPOCHS)


def test_a_pause_is_evaluated_by_the_whole_recipe_s_schedule(setting: Setting) -> None:
    paused, _ = setting.run(epochs=2)
    short, _ = setting.run(RECIPE.model_copy(update={"epochs": 2}))
    assert paused.curve[0][0] == short.curve[0][0] == 1
    assert paused.curve != short.curve


def test_an_epoch_that_was_reached_before_is_evaluated_and_not_trained(setting: Setting, tmp_path: Path) -> None:
    def run(epochs: int) -> TrainingResult:
        return setting.run(epochs=epochs, checkpoint=Checkpoint(tmp_path / "one.pt", "one"), ap_epochs=(2, 3))[0]

    first = run(3)
    for epochs in (3, 2):  # it cannot go back
        again = run(epochs)
        assert (again.epochs, again.epochs_trained, again.steps) == (3, 0, 0)
        assert repr((again.ap, again.aps)) == repr((first.ap, first.aps))
    assert [epoch for epoch, _ in first.aps] == [2, 3]


FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
SCRIPT = """
import sys, time
from pathlib import Path
import torch
sys.path[:0] = {tests!r}
from test_training_checkpoint import Checkpoint, Setting
torch.set_num_threads(1)

def on_epoch(done, epochs, loss):
    print(done, flush=True)
    if done == 5:
        time.sleep(600)

Setting(Path({folder!r})).run(checkpoint=Checkpoint(Path({file!r}), "one", every_s=0), on_epoch=on_epoch)
"""


def test_killed_in_mid_training_it_goes_on_in_another_process(
    setting: Setting, unbroken: tuple[TrainingResult, dict[str, Tensor]], folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "one.pt"
    script = SCRIPT.format(tests=FOLDERS, folder=str(folder), file=str(file))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(5)] == ["1", "2", "3", "4", "5"]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    file.with_name("one.pt.writing").write_bytes(b"half of a")  # as a kill in mid-write leaves it
    resumed = setting.run(checkpoint=Checkpoint(file, "one"))
    assert resumed[0].epochs_trained == 4  # the fifth was not kept yet
    assert_same(resumed, unbroken)
    assert list(tmp_path.iterdir()) == []


def _with_header(content: bytes, **changes: object) -> bytes:
    header, payload = content.split(b"\n", 1)
    return json.dumps({**json.loads(header), **changes}).encode() + b"\n" + payload


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[:-1], "is torn"),
        (_flipped, "is torn"),
        (lambda content: bytes(len(content)), "is no checkpoint"),  # as after a power cut
        (lambda content: b"", "is no checkpoint"),
        (lambda content: b"[1]\n", "is no checkpoint"),
        (lambda content: content[content.index(b"\n") + 1 :], "is no checkpoint"),
        (lambda content: _with_header(content, format=2), "has format 2, and this fpn_bench reads 1"),
        (lambda content: _with_header(content, identity="two"), "is of another training (two)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_none(setting: Setting, tmp_path: Path, caplog, spoil, reason: str) -> None:
    file = tmp_path / "one.pt"
    first, _ = setting.run(epochs=1, checkpoint=Checkpoint(file, "one"))
    assert caplog.records == []
    file.write_bytes(spoil(file.read_bytes()))
    again, _ = setting.run(epochs=1, checkpoint=Checkpoint(file, "one"))
    assert again.epochs_trained == 1
    assert again.curve == first.curve
    assert [r.getMessage() for r in caplog.records] == [f"training begins anew: its checkpoint {file} {reason}"]
    assert setting.run(epochs=1, checkpoint=Checkpoint(file, "one"))[0].epochs_trained == 0  # it was replaced


def test_a_checkpoint_of_other_weights_leaves_the_detector_as_it_is(setting: Setting, tmp_path: Path, caplog) -> None:
    file = tmp_path / "one.pt"
    narrow = Detector(
        fb.build_neck(fb.create_graph("fpn", setting.backbone.features, channels=4)),
        setting.classes,
        HeadConfig(convs=1),
    )
    train_detector(
        narrow, setting.train, setting.val, recipe=RECIPE, seed=5, epochs=1, checkpoint=Checkpoint(file, "one")
    )
    plain = setting.run(epochs=1)
    again = setting.run(epochs=1, checkpoint=Checkpoint(file, "one"))
    assert_same(again, plain)
    assert "has other weights than this detector" in caplog.text


def test_what_cannot_be_written_is_done_without_and_said_once(
    setting: Setting, unbroken: tuple[TrainingResult, dict[str, Tensor]], tmp_path: Path, caplog
) -> None:
    caplog.set_level(logging.INFO, logger="fpn_bench")
    setting.run(epochs=1, checkpoint=Checkpoint(tmp_path / "full" / "one.pt", "one"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))  # no file may grow further
    try:
        full = setting.run(epochs=4, checkpoint=Checkpoint(tmp_path / "full" / "one.pt", "one", every_s=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.records) == 1
    assert caplog.text.count("training goes on without a checkpoint") == 1
    assert full[0].epochs_trained == 3
    # What was kept before is whole still, and nothing else lies there.
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["one.pt"]
    resumed = setting.run(checkpoint=Checkpoint(tmp_path / "full" / "one.pt", "one"))
    assert resumed[0].epochs_trained == EPOCHS - 1
    assert_same(resumed, unbroken)

    caplog.clear()
    (tmp_path / "file").write_text("no folder")
    no_folder = setting.run(epochs=3, checkpoint=Checkpoint(tmp_path / "file" / "one.pt", "one", every_s=0))
    assert no_folder[0].epochs == 3
    assert caplog.text.count("training goes on without a checkpoint") == 1


@pytest.mark.parametrize(("every_s", "kept"), [(0.0, [False, True, True, True]), (1e9, [False] * 4)])
def test_a_training_under_way_is_kept_as_often_as_asked(
    setting: Setting, tmp_path: Path, every_s: float, kept: list[bool]
) -> None:
    file = tmp_path / "one.pt"
    seen: list[bool] = []
    setting.run(
        RECIPE.model_copy(update={"epochs": 4}),
        checkpoint=Checkpoint(file, "one", every_s=every_s),
        on_epoch=lambda done, epochs, loss: seen.append(file.exists()),
    )
    assert seen == kept
    assert not file.exists()


@pytest.mark.parametrize("epochs", [0, -1, EPOCHS + 1])
def test_epochs_that_the_recipe_lacks(setting: Setting, epochs: int) -> None:
    with pytest.raises(InputError, match=rf"expected epochs from 1 to the recipe's 8, got epochs={epochs}"):
        setting.run(epochs=epochs)


def test_two_studies_that_write_one_training_at_once_leave_a_whole_file(tmp_path: Path, caplog) -> None:
    """Each writes beside the file under a name of its own, so that what is put in place is whole."""
    file = tmp_path / "one.pt"
    states = [{"w": torch.full((200_000,), float(i))} for i in range(2)]

    def write(state: dict[str, Tensor]) -> None:
        for _ in range(15):
            Checkpoint(file, "one").write(state)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(write, state) for state in states]
        read = []
        while not all(future.done() for future in futures):
            if (state := Checkpoint(file, "one").read()) is not None:
                read.append(state["w"])
    assert read
    assert all((w == w[0]).all() for w in read)
    assert "begins anew" not in caplog.text
    assert "without a checkpoint" not in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["one.pt"]


def test_a_folder_is_trimmed_by_age_and_of_what_the_dead_left(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for age, name in enumerate("abcd"):
        checkpoint = folder.checkpoint(f"{name}.pt", name)
        checkpoint.write({"w": torch.zeros(1000)})
        os.utime(checkpoint.path, (1e9 - age, 1e9 - age))  # d is the oldest
    size = folder.size // 4
    (tmp_path / "a.pt.writing").write_bytes(b"of a release before")
    (tmp_path / f"b.pt.{2**22 + 1}-00ff.writing").write_bytes(b"of a process that is gone")
    (tmp_path / f"c.pt.{os.getpid()}-00ff.writing").write_bytes(b"of this one")
    folder.trim(2 * size)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.pt", "b.pt", f"c.pt.{os.getpid()}-00ff.writing"}
    folder.trim(0)
    assert folder.size == 0
    CheckpointFolder(tmp_path / "not there").trim(0)
