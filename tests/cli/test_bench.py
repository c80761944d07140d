"""Suites with real detectors: the command line, and whether a short training ranks as a longer one does."""

from __future__ import annotations

import json

import pytest

import fpn_bench as fb
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.search import Space, load_study
from fpn_bench.search.api import bench
from fpn_bench.search.proxy import correlate

TINY = {
    "name": "tiny",
    "backbone": {"name": "test_efficientnet"},
    "data": {"kind": "synthetic", "train_images": 8, "val_images": 4, "image_size": [64, 64]},
    "image_size": [64, 64],
    "head": {"kind": "fcos", "convs": 0},
    "training": {"epochs": 1, "batch_size": 4},
    "neck": {"channels": 8, "out_levels": [3, 4, 5]},
    "necks": [{"family": family} for family in ("top_only", "channel_mapper", "fpn", "pafpn", "unet", "bfp")],
    "objectives": {"ap": "maximise", "macs": "minimise"},
}


def test_a_sample_is_trained_longer_and_the_study_knows(tmp_path) -> None:
    options = {"cache": tmp_path / "cache"}
    study = bench(Space.from_dict(TINY), results=tmp_path, **options)
    assert study.table()["status"].tolist() == ["complete"] * 6
    longer = correlate(study.path, times=2, sample=5, **options)
    assert (longer.name, longer.path.parent) == ("tiny-x2", study.path.parent)
    assert longer.metadata()["protocol"]["training"]["epochs"] == 2
    table = longer.table()
    assert len(table) == 5
    assert set(table["candidate"]) < set(study.table()["candidate"])
    assert set(table["seed"]).isdisjoint(study.table()["seed"])  # else both begin with the same weights

    kept = load_study(study.path).metadata()["proxy"]["2"]
    aps = study.table().set_index("candidate")["ap"]
    long = table.set_index("candidate")["ap"]
    assert {c["candidate"]: (c["short"]["0"], *c["long"].values()) for c in kept["candidates"]} == {
        name: (aps[name], long[name]) for name in table["candidate"]
    }
    again = correlate(study.path, times=2, sample=5, **options)
    assert len(again.table()) == 5  # nothing is trained twice
    grown = Space.from_dict({**TINY, "necks": [*TINY["necks"], {"family": "fpn", "merge": "max"}]})
    bench(grown, results=tmp_path, **options)
    again = correlate(study.path, times=2, sample=7, **options)
    assert len(again.table()) == 7  # what was found since is added

    page, *_ = fb.write_report(study.table(), load_study(study.path).metadata(), tmp_path / "page.html")
    assert "7 candidates were trained for 2 epochs too, instead of 1 (study tiny-x2)." in page.read_text()


def test_a_suite_from_the_command_line(cli, tmp_path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps({**TINY, "necks": TINY["necks"][:2]}))
    args = (str(tmp_path / "tiny.yaml"), "--results", str(tmp_path / "r"), "--cache", str(tmp_path / "cache"))
    code, out, _ = cli("bench", *args, "--seeds", "2")
    assert code == 0
    assert "All candidates, best first" in out
    assert out.count("  complete  ") == 4
    assert (tmp_path / "r" / "tiny" / "report.html").exists()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"suite": "quickstart"}, InputError, "expected a suite, .* got the search space 'quickstart'"),
        ({"suite": "neckss"}, UnknownNameError, "unknown search space 'neckss': did you mean 'necks'"),
        ({"suite": "smoke", "weights": {"resnet18": "hub"}}, UnknownNameError, "unknown backbone of suite 'smoke'"),
        ({"suite": "necks"}, InputError, "space 'necks' .* your own data"),
    ],
)
def test_what_cannot_be_benched_is_one_line_and_leaves_nothing(tmp_path, given, error, said) -> None:
    with pytest.raises(error, match=said):
        fb.bench(**given, results=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_what_has_nothing_complete_cannot_be_trained_longer(tmp_path) -> None:
    with pytest.raises(InputError, match="no study at"):
        correlate(tmp_path / "none")
