"""A trial of a study becomes its candidate again, and is trained to the end, whatever happens in between."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import timm
import torch

import fpn_bench as fb
from fpn_bench.candidates import full_training
from fpn_bench.candidates.full_training import _locked, train_full
from fpn_bench.data.images import load_image
from fpn_bench.detection.average_precision import evaluate_ap
from fpn_bench.errors import FormatVersionError, InputError, ProtocolError
from fpn_bench.search import Space
from fpn_bench.search.api import join, search
from fpn_bench.search.load import _row, load_candidate
from fpn_bench.training.full_recipe import FullRecipe
from fpn_bench.training.log import COLUMNS, TrainingLog

SPACE = {
    "name": "tiny",
    "backbone": {"name": "mobilenetv3_small_050"},
    "data": {"kind": "synthetic", "train_images": 6, "val_images": 4, "image_size": [96, 96]},
    "image_size": [64, 64],
    "head": {"kind": "fcos", "convs": 0},
    "training": {"epochs": 1},
    "neck": {"family": "fpn", "channels": {"choices": [8, 16]}},
    "objectives": {"ap": "maximise", "macs": "minimise"},
    "budget": {"trials": 2},
}
OPTIONS = ("--trial", "0", "--epochs", "4", "--batch-size", "2", "--seed", "5", "--unfreeze", "4")
RECIPE = FullRecipe.after(Space.from_dict(SPACE).training, epochs=4, batch_size=2, freeze=4)
"""What `OPTIONS` say."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    where = tmp_path_factory.mktemp("found")
    weights = where / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), weights)
    search(Space.from_dict(SPACE), weights=str(weights), results=where / "results", cache=where / "cache")
    return where


@pytest.mark.parametrize("by", ["number", "prefix"])
def test_a_trial_is_found_by_number_and_by_id(study, by):
    row = fb.load_study(study / "results" / "tiny").table().iloc[1]
    name = {"number": 1, "prefix": row.candidate[:10]}[by]
    hit = load_candidate(study / "results" / "tiny", name, cache=study / "cache")
    assert (hit.candidate.id, hit.row["trial"], hit.differences) == (row.candidate, 1, ())
    assert hit.weights == str(study / "weights.pth")
    assert (hit.spec.graph.id, hit.spec.weights) == (fb.NeckGraph.from_json(row.graph).id, row.weights)
    assert hit.spec.classes == hit.context.dataset.classes


def test_without_a_trial_it_is_the_best_of_the_front(study):
    loaded = fb.load_study(study / "results" / "tiny")
    assert load_candidate(loaded, cache=study / "cache").row["ap"] == loaded.table().ap.max()


def test_weights_of_another_name_are_the_same_weights(study, tmp_path):
    """A worker on another machine, and what takes a trial up again, know weights by their content."""
    shutil.copytree(study / "results", tmp_path / "results")  # which will remember the other name
    renamed = tmp_path / "of another name.pth"
    shutil.copy(study / "weights.pth", renamed)
    folder = tmp_path / "results" / "tiny"
    before = fb.load_study(folder).table()
    hit = load_candidate(folder, 1, weights=renamed, cache=study / "cache")
    assert (hit.candidate.id, hit.spec.weights) == (before.candidate[1], before.weights[1])
    joined = join(folder, weights=str(renamed), cache=study / "cache")
    assert joined.result.status in ("finished", "exhausted")
    assert set(joined.table().weights) == {before.weights[1]}
    again = search(Space.from_dict(SPACE), weights=str(renamed), results=tmp_path / "results", cache=study / "cache")
    assert set(again.table().weights) == {before.weights[1]}

    torch.manual_seed(1)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), renamed)
    with pytest.raises(ProtocolError, match="weights"):
        join(folder, weights=str(renamed), cache=study / "cache")


def test_what_is_found_can_be_trained_as_it_was(study):
    hit = load_candidate(study / "results" / "tiny", 1, cache=study / "cache")
    assert hit.context.trained(hit.candidate, hit.row["seed"])[1].ap.ap == hit.row["ap"]


def test_of_several_backbones_its_own_is_taken(tmp_path):
    names = ("test_resnet", "test_efficientnet")
    torch.manual_seed(0)
    for name in names:
        (tmp_path / name).mkdir()
        torch.save(timm.create_model(name).state_dict(), tmp_path / name / "weights.pth")
    backbones = [{"name": name, "weights": str(tmp_path / name / "weights.pth")} for name in names]
    space = Space.from_dict(
        {**SPACE, "backbone": backbones, "enqueue": [{"backbone": name, "channels": 8} for name in names]}
    )
    search(space, results=tmp_path / "results", cache=tmp_path / "cache")
    for name in names:  # only that which is given is still there
        (tmp_path / name).rename(tmp_path / f"moved {name}")
    rows = fb.load_study(tmp_path / "results" / "tiny").table()
    assert set(rows.backbone) == set(names)
    for row in rows.itertuples():
        moved = tmp_path / f"moved {row.backbone}" / "weights.pth"
        hit = load_candidate(tmp_path / "results" / "tiny", int(row.trial), weights=moved, cache=tmp_path / "cache")
        assert (hit.candidate.id, hit.backbone.name, hit.weights) == (row.candidate, row.backbone, str(moved))


def test_few_digits_are_a_number_and_never_an_id(study):
    loaded = fb.load_study(study / "results" / "tiny")
    rows = [
        {"trial": 3, "candidate": "37aa", "status": "complete", "seed": 0},
        {"trial": 4, "candidate": "1234567f", "status": "complete", "seed": 0},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded, "rows", lambda: rows)
        for trial in (37, "37", 1234567, "12345"):
            with pytest.raises(InputError, match="complete are 3, 4"):
                _row(loaded, trial)
        assert _row(loaded, "37a") is rows[0]
        assert _row(loaded, "123456") is rows[1]
        assert _row(loaded, "4") is rows[1]


@pytest.mark.parametrize("trial", [7, "7", "zzz", ""])
def test_no_such_trial(study, trial):
    with pytest.raises(InputError, match=r"complete are 0, 1|give more of it"):
        load_candidate(study / "results" / "tiny", trial, cache=study / "cache")


def test_other_weights_are_another_candidate(study, tmp_path):
    torch.manual_seed(1)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ProtocolError, match=r"weights file:weights\.pth.*--weights"):
        load_candidate(study / "results" / "tiny", 0, weights=tmp_path / "weights.pth", cache=study / "cache")


def test_other_data_are_said(study, tmp_path):
    from fpn_bench.data.synthetic import write_synthetic

    other = write_synthetic(tmp_path, train_images=4, val_images=4, image_size=(96, 96))
    hit = load_candidate(study / "results" / "tiny", 0, data=other, cache=study / "cache")
    assert "dataset_hash" in {field for field, _, _ in hit.differences}
    assert len(hit.context.dataset.splits["train"]) == 4


# -- to the end -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hit(study):
    return load_candidate(study / "results" / "tiny", 0, cache=study / "cache")


@pytest.fixture(scope="module")
def unbroken(hit, tmp_path_factory):
    return train_full(hit, tmp_path_factory.mktemp("unbroken"), recipe=RECIPE, seed=5)


def start(study, to, *options, cwd):
    """`fpn-bench train` in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(Path(fb.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    code = "from fpn_bench.cli import main; main()"
    args = ["train", str(study / "results" / "tiny"), *OPTIONS, "--out", str(to), "--cache", str(study / "cache")]
    command = [sys.executable, "-c", code, *args, *options]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def train_here(cli, study, to, *options):
    where = ("--out", str(to), "--cache", str(study / "cache"))
    return cli("train", str(study / "results" / "tiny"), *OPTIONS, *where, *options)


def of_training(log: Path) -> list[dict[str, str]]:
    """The rows of a log, without what a clock said."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in csv.DictReader(log.open())
    ]


def check_same(to, unbroken):
    """A training that was broken off and went on ended as the unbroken one."""
    for name in ("model.safetensors", "best.safetensors"):
        assert (to / name).read_bytes() == (unbroken.folder / name).read_bytes()
    assert of_training(to / "log.csv") == of_training(unbroken.folder / "log.csv")
    assert not (to / "checkpoint.pt").exists()


@pytest.mark.slow
def test_killed_and_gone_on_with_it_ends_with_the_same_file(study, hit, unbroken, tmp_path, cli):
    process = start(study, tmp_path / "out", "--checkpoint-minutes", "0", "--workers", "1", cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("epoch   1/4"):
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "checkpoint.pt" in left
    assert "model.safetensors" not in left
    code, told, complaint = train_here(cli, study, tmp_path / "out", "--workers", "0")
    assert code == 0, complaint
    assert "epoch   1/4" not in told  # it is not done again
    assert "epoch   4/4" in told
    check_same(tmp_path / "out", unbroken)


def test_ctrl_c_stops_and_says_how_to_go_on_to_the_same_file(study, unbroken, tmp_path, cli, monkeypatch):
    from fpn_bench.training.train import WeightAverage

    steps = iter(range(100))
    update = WeightAverage.update

    def interrupted(*args):
        update(*args)
        if next(steps) == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(WeightAverage, "update", interrupted)
    to = tmp_path / "out"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
    code, _, complaint = train_here(cli, study, to, "--workers", "0", "--checkpoint-minutes", "0")
    signal.signal(signal.SIGINT, before)
    assert (code, complaint) == (130, "stopped in epoch 2; the same command goes on from the last checkpoint\n")
    assert json.loads((to / "train.json").read_text())["status"] == "running"
    assert not (to / "model.safetensors").exists()
    code, told, complaint = train_here(cli, study, to, "--workers", "0")
    assert code == 0, complaint
    assert "epoch   1/4" not in told  # it is not done again
    assert "epoch   4/4" in told
    check_same(to, unbroken)


def test_what_is_finished_says_so_and_other_settings_are_refused(study, unbroken, cli):
    before = {path: path.read_bytes() for path in unbroken.folder.iterdir()}
    code, told, _ = train_here(cli, study, unbroken.folder)
    assert code == 0
    assert "this training is finished" in told
    assert f"AP {unbroken.about['ap']:.1f}" in told
    code, _, complaint = train_here(cli, study, unbroken.folder, "--seed", "6", "--scale", "1-1")
    assert code == 2
    assert "seed: 5 there, 6 here, recipe.scale: [0.8, 1.25] there, [1.0, 1.0] here" in complaint
    assert "--out DIR" in complaint
    assert before == {path: path.read_bytes() for path in unbroken.folder.iterdir()}


def test_the_file_finds_what_the_log_says(hit, unbroken):
    model = fb.ImageDetector.load(unbroken.model)
    records = hit.context.dataset.splits["val"]
    ap = evaluate_ap([model.detect([load_image(record)])[0] for record in records], records, len(model.spec.classes))
    rows = of_training(unbroken.folder / "log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert ap.ap == pytest.approx(float(rows[-1]["ap"]), abs=1e-3)
    assert model.about == json.loads((unbroken.folder / "train.json").read_text())["about"] == unbroken.about
    assert [ap for _, ap in model.about["ap_curve"]] == pytest.approx([float(row["ap"]) for row in rows], abs=1e-3)
    best = fb.ImageDetector.load(unbroken.folder / "best.safetensors")
    assert best.about["ap"] == max(ap for _, ap in model.about["ap_curve"])
    assert (model.about["candidate"], model.about["seed"]) == (hit.candidate.id, 5)
    assert model.about["dataset_hash"] == hit.context.dataset.hash


def test_one_folder_one_training(hit, tmp_path):
    with filelock.FileLock(tmp_path / "train.lock"), pytest.raises(InputError, match="another training is at work"):
        train_full(hit, tmp_path, recipe=RECIPE)


def test_what_another_call_ended_meanwhile_is_not_done_again(hit, unbroken, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def held(folder, processes):
        with _locked(folder, processes):
            (folder / "train.json").write_bytes((unbroken.folder / "train.json").read_bytes())
            yield

    monkeypatch.setattr(full_training, "_locked", held)
    done = train_full(hit, tmp_path, recipe=RECIPE, seed=5)
    assert (done.fresh, done.about) == (False, unbroken.about)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", InputError, "no record of a training"),
        ('{"schema_version": 2, "settings": {}}', FormatVersionError, "schema_version 1 or lower, got 2"),
        ('{"schema_version": "1", "settings": {}, "status": "running"}', InputError, "no record of a training"),
        ('{"schema_version": 1, "settings": ["a"], "status": "running"}', InputError, "no record of a training"),
        ('{"schema_version": 1, "settings": {}}', InputError, "no record of a training"),
        ('{"schema_version": 1, "settings": {}, "status": "finished"}', InputError, "no record of a training"),
    ],
)
def test_other_records_are_refused(hit, tmp_path, text, error, message):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(error, match=message):
        train_full(hit, tmp_path, recipe=RECIPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--unfreeze", "some"), "none, all or the last frozen level, e.g. --unfreeze 3, got some"),
        (("--unfreeze", "9"), "9"),
        (("--scale", "big"), "expected --scale as SMALLEST-LARGEST, e.g. 0.8-1.25, got big"),
        (("--scale", "0.8-inf"), "--scale.1: expected a finite number, got inf"),
        (("--scale", "2-1"), "expected scale with the smaller factor first"),
        (("--amp", "int8"), "--amp: "),
        (("--device", "gpu"), "or 'cuda:N', got 'gpu'"),
        (("--trial", "9"), "complete are 0, 1"),
    ],
)
def test_what_cannot_be_is_one_line(study, tmp_path, cli, options, message):
    code, _, complaint = train_here(cli, study, tmp_path, *options)
    assert code == 2
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "train.json").exists()


def test_the_log_is_one_line_an_epoch_and_takes_back_what_was_not_kept(tmp_path):
    row = dict.fromkeys(COLUMNS, 0.123456789) | {"ap": None, "ap50": None}
    log = TrainingLog(tmp_path, tensorboard=False)
    with log.resumed_at([]):
        log.write([row | {"epoch": 1}, row | {"epoch": 2}])
    with log.resumed_at([row | {"epoch": 1}]):
        assert log.path.read_text().splitlines() == [",".join(COLUMNS), "1" + ",0.123457" * 4 + ",," + ",0.123457" * 3]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_is_told_the_same(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    row = dict.fromkeys(COLUMNS, 0.5) | {"ap": None}
    log = TrainingLog(tmp_path)
    for begun in (0, 1):  # the second goes on from the first epoch
        rows = [row | {"epoch": epoch, "loss": float(epoch)} for epoch in range(1, begun + 1)]
        with log.resumed_at(rows):
            for epoch in range(begun + 1, 3):
                rows.append(row | {"epoch": epoch, "loss": float(epoch + 10 * begun)})
                log.write(rows)
    told = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "ap" not in told.Tags()["scalars"]
    assert [(event.step, event.value) for event in told.Scalars("loss")] == [(1, 1.0), (2, 12.0)]


@pytest.mark.slow
def test_torchrun_trains_in_two_processes(study, unbroken, tmp_path):
    script = tmp_path / "fpn-bench"
    script.write_text("from fpn_bench.cli import main\n\nmain()\n")
    package = str(Path(fb.__file__).parents[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), "train"]
    where = ["--out", str(tmp_path / "out"), "--cache", str(study / "cache")]
    done = subprocess.run(
        [*command, str(study / "results" / "tiny"), *OPTIONS, *where],
        env=os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   4/4") == 1  # one of them speaks
    model, alone = fb.ImageDetector.load(tmp_path / "out" / "model.safetensors"), fb.ImageDetector.load(unbroken.model)
    assert model.about["processes"] == 2
    values = alone.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, values[name], rtol=1e-2, atol=1e-3)
