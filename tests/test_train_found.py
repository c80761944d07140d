"""A trial of a study becomes its candidate again, on a workbench with what it was trained with."""

from __future__ import annotations

import pytest
import timm
import torch

import fpn_bench as fb
from fpn_bench.errors import InputError, ProtocolError
from fpn_bench.search import Space
from fpn_bench.search.found import found
from fpn_bench.search.run import search

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


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny layers: threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    where = tmp_path_factory.mktemp("found")
    weights = where / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), weights)
    search(Space.from_dict(SPACE), weights=str(weights), results=where / "results", cache=where / "cache")
    return where


@pytest.mark.parametrize("by", ["number", "text", "id", "prefix"])
def test_a_trial_is_found_by_number_and_by_id(study, by):
    row = fb.load_study(study / "results" / "tiny").table().iloc[1]
    name = {"number": 1, "text": "1", "id": row.candidate, "prefix": row.candidate[:10]}[by]
    hit = found(study / "results" / "tiny", name, cache=study / "cache")
    assert (hit.candidate.id, hit.row["trial"], hit.differences) == (row.candidate, 1, ())
    assert hit.weights == str(study / "weights.pth")
    assert (hit.spec.graph.id, hit.spec.weights) == (fb.NeckGraph.from_json(row.graph).id, row.weights)
    assert hit.spec.classes == hit.bench.dataset.classes


def test_without_a_trial_it_is_the_best_of_the_front(study):
    loaded = fb.load_study(study / "results" / "tiny")
    assert found(loaded, cache=study / "cache").row["ap"] == loaded.table().ap.max()


def test_what_is_found_can_be_trained_as_it_was(study):
    hit = found(study / "results" / "tiny", 1, cache=study / "cache")
    assert hit.bench.trained(hit.candidate, hit.row["seed"])[1].ap.ap == hit.row["ap"]


@pytest.mark.parametrize("trial", [7, "7", "zzz", ""])
def test_no_such_trial(study, trial):
    with pytest.raises(InputError, match=r"complete are 0, 1|say more of it"):
        found(study / "results" / "tiny", trial, cache=study / "cache")


def test_other_weights_are_another_candidate(study, tmp_path):
    torch.manual_seed(1)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ProtocolError, match=r"weights file:weights\.pth.*--weights"):
        found(study / "results" / "tiny", 0, weights=tmp_path / "weights.pth", cache=study / "cache")


def test_other_data_are_said(study, tmp_path):
    from fpn_bench.detection.synthetic import write_synthetic

    other = write_synthetic(tmp_path, train_images=4, val_images=4, image_size=(96, 96))
    hit = found(study / "results" / "tiny", 0, data=other, cache=study / "cache")
    assert "dataset_hash" in {field for field, _, _ in hit.differences}
    assert len(hit.bench.dataset.splits["train"]) == 4
