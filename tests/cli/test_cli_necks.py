"""`fpn-bench necks` and `necks show`."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from fpn_bench.graph import NeckGraph, cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph, list_necks, list_unfit

R50 = (FeatureSpec(3, 512, 8), FeatureSpec(4, 1024, 16), FeatureSpec(5, 2048, 32))


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_every_neck_is_listed_with_its_costs_and_what_is_no_graph_with_the_reason(cli):
    code, out, _ = cli("necks", "--channels", "64", "--image-size", "320x256")
    assert code == 0
    listed = rows(out)
    assert set(list_necks()) | set(list_unfit()) <= set(listed)
    expected = cost(create_graph("fpn", R50, (3, 4, 5, 6, 7), 64), (320, 256))
    assert listed["fpn"][:4] == [f"{expected.params / 1e3:.0f}", "k", f"{expected.macs / 1e6:.0f}", "M"]
    assert list_unfit()["rfp"] in out
    assert "over C3:512 C4:1024 C5:2048 at 320x256, P3-P7, 64 channels" in out


def test_a_neck_that_cannot_be_made_shows_why_and_the_others_are_listed_still(cli):
    code, out, _ = cli("necks", "--features", "4:768", "--out-levels", "2-6")
    assert code == 0
    listed = rows(out)
    assert listed["simple_fpn"][:2] == ["5.56", "M"]
    assert listed["fpn"][:2] == ["-", "-"]
    assert "not here: P2, P3 asked for, but the features start at P4" in out


def test_show_prints_what_each_node_costs(cli):
    code, out, _ = cli("necks", "show", "fpn", "--image-size", "96x64", "--channels", "32", "--out-levels", "3-6")
    assert code == 0
    expected = cost(create_graph("fpn", R50, (3, 4, 5, 6), 32), (96, 64))
    table = rows(out[out.rindex("node ") :])
    for node in expected.nodes:
        height, width = node.size
        assert table[node.name][:3] == [f"P{node.level}", f"{height}x{width}", f"{node.params:,}"]
    assert table["all"][:2] == ["96x64", f"{expected.params:,}"]
    assert "merge1_4 + " not in out
    assert "C5 => 1x1" in out


def test_options_are_set_by_the_type_of_their_defaults(cli, tmp_path):
    args = ("--set", "norm=none", "--set", "repeats=1", "-o", "expansion=1", "--set", "separable=yes")
    path, drawing = tmp_path / "tpn.json", tmp_path / "tpn.svg"
    code, out, _ = cli("necks", "show", "tpn", *args, "--json", str(path), "--svg", str(drawing))
    assert code == 0
    chosen = {"norm": "none", "repeats": 1, "expansion": 1.0, "separable": True}
    graph = create_graph("tpn", R50, (3, 4, 5), 256, **chosen)
    assert NeckGraph.from_dict(json.loads(path.read_text())) == graph
    assert "repeats=1, depth=2, expansion=1.0" in out
    ElementTree.parse(drawing)
    code, out, _ = cli(
        "necks", "show", "upernet", "--set", "bins=[1, 4]", "--features", "3:16,4:32", "--out-levels", "3"
    )
    assert code == 0
    assert "C4 cat (C4 > avg-pool to 1x1 1x1 BN relu restore) cat (C4 > avg-pool to 4x4" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "rfp"), "feeds its outputs back"),
        (("show", "tpn", "--set", "repeat=2"), "unknown option of neck 'tpn' 'repeat': did you mean 'repeats'"),
        (("show", "tpn", "--set", "repeats"), "expected --set as KEY=VALUE, e.g. --set norm=batch, got 'repeats'"),
        (
            ("show", "tpn", "--set", "repeats=many"),
            "expected a whole number, as in the default 3, got --set 'repeats=many'",
        ),
        (("show", "tpn", "--set", "repeats=true"), "expected a whole number"),
        (("show", "tpn", "--set", "repeats=[1"), "expected a whole number"),
        (("show", "tpn", "--set", "separable=1"), "expected true or false, as in the default False"),
        (("show", "tpn", "--set", "expansion=wide"), "expected a number"),
        (("show", "upernet", "--set", "bins=3"), "expected a list"),
        (("show", "upernet", "--set", "bins=!!python/name:os.system"), "expected a list"),
        (("show", "tpn", "--set", "norm=bath"), "did you mean 'batch'"),
        (("show", "fpn", "--image-size", "0x3"), "at least 1x1"),
        (("show", "fpn", "--features", "3:16,5"), "expected features as LEVEL:CHANNELS,..."),
        (("--features", "3:0"), "levels from 0 and channels from 1"),
        (("--features", "4:16,3:16"), "finest first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_is_one_line(cli, args, message):
    code, _, err = cli("necks", *args)
    assert code == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1, err


def test_long_necks_are_shown_and_longer_ones_refused_in_one_line(cli):
    code, out, _ = cli("necks", "show", "bifpn", "--set", "repeats=300")
    assert code == 0
    assert rows(out)["cell300_bottom_up5"]
    for option in ("--set=repeats=100000", "--channels=400000000"):
        code, out, err = cli("necks", "show", "bifpn", option)
        assert code == 2
        assert err.count("\n") == 1
