"""The table: checks, dtypes, protocols, and a CSV that reads back equal."""

from __future__ import annotations

import math
import os

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import realistic_table, row

from fpn_bench.analysis import (
    COLUMNS,
    SCHEMA_VERSION,
    check_table,
    empty_table,
    make_table,
    one_protocol,
    parse_objectives,
    read_csv,
    write_csv,
)
from fpn_bench.errors import FormatVersionError, InputError, ProtocolError, UnknownNameError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
NUMBER = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


def test_empty_table_has_every_column_and_passes_its_own_check() -> None:
    table = check_table(empty_table())
    assert list(table.columns) == [c.name for c in COLUMNS]
    assert len(table) == 0
    pd.testing.assert_frame_equal(table, empty_table())
    pd.testing.assert_frame_equal(make_table([]), empty_table())


def test_make_table_fills_what_rows_leave_out() -> None:
    table = make_table([{"study": "s", "trial": 3, "status": "running", "source": "sampled"}])
    only = table.iloc[0]
    assert only["schema_version"] == SCHEMA_VERSION
    assert math.isnan(only["ap"])
    assert only["params"] is pd.NA
    assert only["reason"] == ""


def test_check_leaves_its_argument_alone() -> None:
    table = realistic_table(8)
    before = table.copy(deep=True)
    check_table(table)
    pd.testing.assert_frame_equal(table, before)


def test_a_newer_table_is_refused() -> None:
    with pytest.raises(FormatVersionError, match=r"version 2.*up to 1.*pip install --upgrade"):
        check_table(make_table([row()]).assign(schema_version=2))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"status": "done"}, UnknownNameError, "unknown status 'done'"),
        ({"source": "sampeld"}, UnknownNameError, "did you mean 'sampled'"),
        ({"macs": "many"}, InputError, r"column 'macs': expected int, got 'many'"),
        ({"macs": 1.5}, InputError, r"column 'macs': expected int, got 1.5"),
        ({"weights_random": "maybe"}, InputError, r"'weights_random': expected bool, got 'maybe'"),
        ({"latencyms": 3.0}, UnknownNameError, "did you mean 'latency_ms'"),
    ],
)
def test_a_wrong_row_is_refused(change: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_table([row(**change)])


def test_a_table_without_columns_is_refused() -> None:
    with pytest.raises(InputError, match="schema_version"):
        check_table(pd.DataFrame({"ap": [1.0]}))
    with pytest.raises(InputError, match=r"lacks the columns ap, params"):
        check_table(make_table([row()]).drop(columns=["ap", "params"]))


def test_two_protocols_are_not_mixed() -> None:
    table = make_table([row(0), row(1, protocol="0ther", epochs=4)])
    with pytest.raises(
        ProtocolError, match=r"'1f0c5a7e9b21' \(oi_vehicles, 256x256, 8 epochs.*'0ther'.*mix_protocols=True"
    ):
        one_protocol(table)
    assert one_protocol(table, mix_protocols=True) == "1f0c5a7e9b21+0ther"
    assert one_protocol(table.head(1)) == "1f0c5a7e9b21"
    assert one_protocol(empty_table()) == ""
    assert one_protocol(make_table([row(0), row(1, protocol="", status="running")])) == "1f0c5a7e9b21"
    with pytest.raises(ProtocolError):
        one_protocol(make_table([row(0), row(1, protocol="")]))


def test_objectives_are_checked() -> None:
    assert parse_objectives([{"name": "ap", "direction": "maximise"}])[0].maximize
    with pytest.raises(UnknownNameError, match="did you mean 'macs'"):
        parse_objectives([{"name": "mac", "direction": "minimize"}])
    with pytest.raises(UnknownNameError, match="did you mean 'minimize'"):
        parse_objectives([{"name": "macs", "direction": "min"}])
    with pytest.raises(InputError, match="at least one"):
        parse_objectives([])


def test_csv_reads_back_equal(tmp_path: os.PathLike[str]) -> None:
    table = realistic_table(120, seeds=2)
    assert {"rejected", "repeat", "complete"} <= set(table["status"])
    path = write_csv(table, os.path.join(tmp_path, "deep", "table.csv"))
    pd.testing.assert_frame_equal(read_csv(path), table)
    assert os.listdir(path.parent) == ["table.csv"]


def test_empty_csv_reads_back_equal(tmp_path: os.PathLike[str]) -> None:
    pd.testing.assert_frame_equal(read_csv(write_csv(empty_table(), os.path.join(tmp_path, "t.csv"))), empty_table())


@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "neck_label": TEXT,
                "reason": TEXT,
                "ap": NUMBER,
                "latency_ms": NUMBER,
                "macs": st.one_of(st.none(), st.integers(0, 2**53)),
                "weights_random": st.sampled_from([True, False, None]),
                "choice.levels": st.one_of(
                    st.none(), TEXT, st.booleans(), st.integers(), st.lists(st.integers(), max_size=3)
                ),
            }
        ),
        max_size=4,
    )
)
def test_any_csv_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    table = make_table([row(i, **values) for i, values in enumerate(rows)])
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    pd.testing.assert_frame_equal(read_csv(write_csv(table, path)), table)


def test_what_is_no_table_is_refused(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "x.csv")
    with pytest.raises(InputError, match="no table at"):
        read_csv(path)
    for content in (b"", b"a,b\n1,2,3\n", b"\xff\xfe\x00", b"a,b\n1,2\n"):
        with open(path, "wb") as stream:
            stream.write(content)
        with pytest.raises(InputError):
            read_csv(path)
