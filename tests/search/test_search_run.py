"""`search` over real detectors on the drawn set: what a study refuses and what it keeps."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import timm
import torch
import yaml

import fpn_bench as fb
from fpn_bench.candidates.context import EvaluationContext
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.errors import InputError, ProtocolError, WeightsError
from fpn_bench.reports import write_report
from fpn_bench.search import Space
from fpn_bench.search.api import search
from fpn_bench.search.load import load_candidate

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


@pytest.fixture
def where(tmp_path):
    return {"results": tmp_path / "results", "cache": tmp_path / "cache"}


def test_a_study_of_real_detectors_and_its_table(where):
    study = search(Space.from_dict(SPACE), **where)
    table = fb.load_study(where["results"] / "tiny").table()
    assert study.result.status == "finished"
    assert list(table.status) == ["complete", "complete"]
    assert table.weights_random.all()
    assert not table.cache_hit.iloc[0]
    assert table.protocol.nunique() == 1
    assert (table.params > table.neck_params).all()
    assert (table.epochs == 1).all()
    assert len(study.front()) >= 1
    assert any("random weights" in w for w in study.metadata()["warnings"])
    graphs = [fb.NeckGraph.from_json(text) for text in table.graph]
    features = fb.create_backbone("mobilenetv3_small_050", image_size=(64, 64)).features
    assert [g.inputs for g in graphs] == [features] * 2


def test_ap_and_loss_after_every_epoch_stand_in_the_row(where):
    space = Space.from_dict({**SPACE, "training": {"epochs": 3}, "rungs": {"epochs": [1]}})
    study = search(space, trials=1, **where)
    (row,) = study.table().to_dict("records")
    curve, losses = json.loads(row["ap_curve"]), json.loads(row["val_loss_curve"])
    assert [epoch for epoch, _ in curve] == [epoch for epoch, _ in losses] == [1, 2, 3]
    assert curve[-1][1] == row["ap"]
    assert all(math.isfinite(loss) and loss > 0 for _, loss in losses)
    again = search(space, trials=1, name="again", **where).table()
    assert again.shared_from[0] == "tiny"
    assert again.val_loss_curve[0] == row["val_loss_curve"]


def test_other_weights_under_the_same_path_are_refused(where, tmp_path):
    file = tmp_path / "weights.pth"
    space = Space.from_dict(SPACE)
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), file)
        if seed == 0:
            search(space, weights=str(file), trials=1, **where)
            continue
        with pytest.raises(ProtocolError, match=r"weights file:weights\.pth.*another --name"):
            search(space, weights=str(file), trials=2, **where)
    assert len(fb.load_study(where["results"] / "tiny").table()) == 1


def test_another_recipe_is_refused_and_more_trials_are_not(where):
    search(Space.from_dict(SPACE), trials=1, **where)
    with pytest.raises(ProtocolError, match=r"training\.epochs: 1 there, 2 here"):
        search(Space.from_dict({**SPACE, "training": {"epochs": 2}}), **where)
    assert search(Space.from_dict(SPACE), trials=2, **where).result.counts == {"complete": 1}


def test_a_study_keeps_the_recipe_of_the_release_that_began_it(where):
    """Releases without a choice of optimiser trained with AdamW and recorded nothing of it."""
    adamw = {**SPACE, "training": {"epochs": 1, "optimizer": "adamw"}}
    begun = search(Space.from_dict(adamw), trials=1, **where)
    attributes = begun._study.user_attrs
    for key, of in (("metadata", "protocol"), ("identity", "protocol_fields")):
        for name in ("optimizer", "muon_learning_rate"):
            del attributes[key][of]["training"][name]
        begun._study.set_user_attr(key, attributes[key])
    begun._study.set_user_attr("run", {**attributes["run"], "space": Space.from_dict(SPACE).text})

    again = fb.load_study(where["results"] / "tiny")
    assert again.space().training.optimizer == "adamw"
    assert load_candidate(again, 0, cache=where["cache"]).differences == ()
    assert search(Space.from_dict(SPACE), trials=2, **where).table().protocol.nunique() == 1
    with pytest.raises(ProtocolError, match=r'training\.optimizer: null there, "muon" here'):
        search(Space.from_dict({**SPACE, "training": {"optimizer": "muon"}}), trials=3, **where)
    fresh = search(Space.from_dict(SPACE), trials=1, name="fresh", **where)
    assert fresh.metadata()["protocol"]["training"]["optimizer"] == "muon"


def test_a_space_without_a_feasible_point_is_refused_before_anything_is_paid(where):
    space = Space.from_dict({**SPACE, "constraints": ["params <= 1000"]})
    with pytest.raises(InputError, match="params"):
        search(space, **where)


def test_weights_of_several_backbones_need_a_name(where):
    space = Space.from_dict({**SPACE, "backbone": [{"name": "resnet18"}, {"name": "resnet34"}]})
    with pytest.raises(InputError, match="expected --backbone with weights"):
        search(space, weights="x.pth", **where)
    with pytest.raises(WeightsError, match=r"x\.pth"):
        search(space, backbone="resnet18", weights="x.pth", **where)


def test_explicit_split_paths(where, tmp_path):
    drawn = search(Space.from_dict(SPACE), trials=1, **where)
    (folder,) = (where["cache"] / "data").glob("synthetic-*")
    splits = {s: [f"annotations/{s}.json", "images"] for s in ("train", "val")}
    space = Space.from_dict(yaml.safe_load(yaml.safe_dump({**SPACE, "data": {"kind": "coco", "splits": splits}})))
    explicit = search(space, data=folder, trials=1, name="explicit", share=False, **where)
    assert explicit.table().protocol[0] == drawn.table().protocol[0]  # the same images, the same protocol
    assert explicit.table().ap[0] == drawn.table().ap[0]
    assert explicit.table().cache_hit[0]


@pytest.fixture
def photos(tmp_path):
    """A drawn set with a test split."""
    folder = write_synthetic(tmp_path / "photos", train_images=6, val_images=4, image_size=(96, 96))
    annotations = folder / "annotations"
    shutil.copy(annotations / "val.json", annotations / "test.json")
    return folder


def test_what_was_chosen_is_evaluated_once_on_the_test_split(where, photos, monkeypatch):
    looked = []
    plain = EvaluationContext.test

    def test(self, candidate, seed, on_progress=None):
        looked.append(candidate.id)
        return plain(self, candidate, seed, on_progress)

    monkeypatch.setattr(EvaluationContext, "test", test)
    space = Space.from_dict({**SPACE, "data": {"kind": "coco"}, "image_size": [96, 96]})
    study = search(space, data=photos, **where)
    front = set(study.front().candidate)
    assert front <= set(looked)
    assert len(looked) == len(set(looked))
    again = search(space, data=photos, **where)
    assert len(looked) == len(set(looked)) == len(again.test_results())
    aps = {row["candidate"]: row["ap"] for row in again.table().to_dict("records")}
    for record in again.test_results():
        assert record["images"] == 4
        assert record["val_ap"] == aps[record["candidate"]]
        assert record["test_ap"] == record["val_ap"]  # the same images, the same weights
    write_report(again.table(), again.metadata(), where["results"] / "r")
    text = (where["results"] / "r.md").read_text()
    assert "On the held-out test split" in text
    assert search(space, data=photos, name="not asked", test=False, **where).test_results() == []


def test_no_search_reads_the_test_split_before_it_is_over(where, photos, monkeypatch):
    class Sealed(dict):
        """Splits of which the one is not to be had while a search is on."""

        sealed = True

        def __getitem__(self, name):
            assert not (self.sealed and name == "test"), "the test split was read"
            return super().__getitem__(name)

        def values(self):
            raise AssertionError("all splits were read")

        items = values

    plain = EvaluationContext.__init__

    def sealing(self, dataset, **given):
        plain(self, dataclasses.replace(dataset, splits=Sealed(dataset.splits)), **given)

    def open_seal(self, *given):
        Sealed.sealed = False
        return original(self, *given)

    original = EvaluationContext.test
    monkeypatch.setattr(EvaluationContext, "__init__", sealing)
    monkeypatch.setattr(EvaluationContext, "test", open_seal)
    space = {**SPACE, "data": {"kind": "coco"}, "image_size": [96, 96], "training": {"epochs": 2}}
    space |= {"rungs": {"epochs": [1]}, "budget": {"trials": 4, "confirm": 0.5}}
    study = search(Space.from_dict(space), data=photos, **where)
    assert not Sealed.sealed
    assert study.test_results()
