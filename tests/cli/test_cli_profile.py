"""`fpn-bench profile`: candidates side by side, what it refuses, and what it says of those that fail."""

import json
import sys
from collections.abc import Callable

import pytest

from fpn_bench.cli import main
from fpn_bench.cli.profile import out

Call = Callable[..., tuple[int, str, str]]
SMALL = ("--backbone", "resnet18", "--image-size", "64", "--channels", "8")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`fpn-bench profile` in this process: (exit code, what it printed, what it complained of)."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fpn-bench", "profile", *args])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    monkeypatch.setattr(out, "width", 300)
    return run


def test_candidates_are_compared_with_the_first(call: Call) -> None:
    run = ("--device", "cpu", "--threads", "1", "--budget", "0.1")
    code, out, err = call("fpn", "bifpn,repeats=1", "fpn,channels=16", *SMALL, *run, "--json")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)["profiles"]}
    assert list(rows) == ["fpn", "bifpn,repeats=1", "fpn,channels=16"]
    assert rows["fpn"]["comparison"] is None
    for row in rows.values():
        assert row["status"] == "ok"
        assert row["execution"]["threads"] == row["latency"]["threads"] == 1
        assert row["latency"]["low_ms"] <= row["latency"]["median_ms"] <= row["latency"]["high_ms"]
    assert rows["bifpn,repeats=1"]["comparison"]["verdict"] in ("same", "faster", "slower", "unclear")
    assert rows["fpn"]["static"]["params"] < rows["fpn,channels=16"]["static"]["params"]
    code, out, err = call("fpn", "fpn", "resnet10t+fpn", *SMALL, *run)
    assert code == 0, err
    assert "fpn (2)" in out
    assert "against fpn" in out
    assert "batch 1, fp32, contiguous, eager, warm caches on cpu, 1 threads" in out


def test_what_fails_stands_in_its_row_and_the_others_go_on(call: Call) -> None:
    run = ("--device", "cpu", "--budget", "0.1")
    code, out, err = call("fpn", "fpn,channels=65536", "pafpn", *SMALL, *run, "--json")
    assert code == 1, err
    good, bad, other = json.loads(out)["profiles"]
    assert [row["status"] for row in (good, bad, other)] == ["ok", "out_of_memory", "ok"]
    assert other["comparison"]["ratio"] > 0
    assert bad["latency"] is bad["static"] is bad["comparison"] is None
    assert bad["reason"].startswith("build: out of memory: ")
    code, out, err = call("fpn,channels=65536", *SMALL, *run)
    assert (code, out) == (1, "")
    assert "out of memory" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fpn",), "has no backbone: give --backbone NAME"),
        (("fpn", "--backbone", "resnet18", "--neck", "fpn"), "expected either candidates or --neck, got both"),
        (("fpn,merge", "--backbone", "resnet18"), "expected an option as KEY=VALUE"),
        (("fpn,merg=sum", "--backbone", "resnet18"), "merg"),
        (("fpn", "--backbone", "resnet18", "--device", "tpu"), "or 'cuda:N', got 'tpu'"),
        (
            ("fpn", "--backbone", "resnet18", "--device", "cpu", "--precision", "tf32"),
            "expected a CUDA device for precision='tf32', got 'cpu'",
        ),
        (("fpn", "--backbone", "resnet18", "--device", "cpu", "--mode", "cuda_graph"), "try eager or compiled"),
        (
            ("fpn", "--backbone", "resnet18", "--device", "cpu", "--budget", "0"),
            "expected budget_s to be seconds above 0",
        ),
        (
            ("fpn", "--backbone", "resnet18", "--device", "cpu", "--tolerance", "0"),
            "expected tolerance to be a share above 0",
        ),
        (("fpn", "--backbone", "resnet18", "--precision", "int8"), "int8"),
        (("fpn", "--backbone", "resnet18", "--batch", "2"), "expected --device or --memory"),
        (
            ("fpn", "pafpn", "--backbone", "resnet18", "--view", "x.html"),
            "expected one candidate with --view x.html, got 2",
        ),
    ],
)
def test_bad_arguments_get_one_line(call: Call, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = call(*arguments)
    assert code == 2, err
    assert message in err
    assert not out


def test_ctrl_c_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fpn_bench.latency.profile_all", interrupted)
    code, out, err = call("fpn", *SMALL)
    assert (code, out, err.strip()) == (130, "", "fpn-bench: stopped")


@pytest.mark.parametrize("wrong", ["chanels=3", "Channels=16", "repeat=1"])
def test_a_mistyped_option_is_answered_by_the_right_one(call: Call, wrong: str) -> None:
    code, _, err = call(f"bifpn,{wrong}", *SMALL)
    assert code == 2
    assert f"did you mean '{'repeats' if wrong.startswith('rep') else 'channels'}'" in err
