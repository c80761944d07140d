"""The view of a profile: every module below what holds it, nothing lost on the way."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from fpn_bench.errors import InputError
from fpn_bench.profiling import StaticProfile, static_profile
from fpn_bench.reports.profile_view import profile_figure, profile_info


@pytest.fixture(scope="module")
def profile() -> StaticProfile:
    trunk = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.MaxPool2d(2)).eval()
    neck = nn.Sequential(nn.Conv2d(4, 2, 1))
    return static_profile({"backbone": (trunk, torch.zeros(1, 3, 10, 10)), "<neck>": (neck, torch.zeros(1, 4, 4, 4))})


def test_rows_are_a_tree(profile: StaticProfile) -> None:
    info = profile_info(profile).set_index("path")
    assert info.loc["all", "macs"] == profile.macs
    assert info.loc["all", "other_ops"] == profile.other_ops
    assert info.loc["all/backbone/0/0", ["parent", "macs", "params"]].tolist() == ["all/backbone/0", 64 * 108, 112]
    below = info.groupby("parent")["activation_elements"].sum()
    for path in ("all", "all/backbone", "all/backbone/0", "all/<neck>"):
        assert below[path] == info.loc[path, "activation_elements"]
    assert set(info["parent"]) - {""} <= set(info.index)


def test_the_json_says_the_same(profile: StaticProfile) -> None:
    plain = json.loads(json.dumps(dataclasses.asdict(profile)))
    assert profile_info(plain).equals(profile_info(profile))


@pytest.mark.parametrize("value", ["macs", "params", "other_ops", "activation_elements"])
def test_bars_are_as_wide_as_their_share(profile: StaticProfile, value: str) -> None:
    info = profile_info(profile)
    (trace,) = profile_figure(info, value).data
    shares = dict(zip(trace.ids, trace.values / trace.values[0], strict=True))
    expected = info.set_index("path")[value] / info[value].iloc[0]
    assert shares == pytest.approx(expected[expected > 0].to_dict())


def test_names_are_text(profile: StaticProfile) -> None:
    assert "&lt;neck&gt;" in profile_figure(profile_info(profile)).data[0].labels


def test_nothing_to_draw_is_drawn() -> None:
    empty = static_profile({"part": (nn.Identity(), torch.zeros(1))})
    assert list(profile_figure(profile_info(empty)).data[0].ids) == ["all"]


@pytest.mark.parametrize("wrong", [{}, {"parts": {"neck": {"macs": 3}}}, {"parts": None}])
def test_what_is_no_profile(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected a profile with modules"):
        profile_info(wrong)


def test_an_unknown_value(profile: StaticProfile) -> None:
    with pytest.raises(InputError, match=r"expected value to be one of macs, .* got 'flops'"):
        profile_figure(profile_info(profile), "flops")


def test_a_view_of_json_needs_no_torch() -> None:
    code = "import sys, fpn_bench.reports.profile_view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
