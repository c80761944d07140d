"""YAML as people type it: YAML 1.2's core schema, bounded, and errors of one line."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fpn_bench.errors import DataError, InputError, SpaceError
from fpn_bench.yaml_text import MAX_DEPTH, dump_yaml, load_yaml, scalar


def load(text: str, **options):
    return load_yaml(text, "file", **options)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0100", 100),
        ("-007", -7),
        ("+5", 5),
        ("0o100", 64),
        ("0x40", 64),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("1:4", "1:4"),
        ("1:30:00", "1:30:00"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("-0x10", "-0x10"),
        ("08", 8),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("~", None),
        ("Null", None),
        ("", None),
        ("=", "="),
        ("'0100'", "0100"),
        ("!!str 0100", "0100"),
        ("!!int '12'", 12),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(text, value):
    for where in (f"key: {text}", f"key: [{text or '~'}, 1]"):
        came = load(where)["key"]
        came = came[0] if isinstance(came, list) else came
        assert came == value
        assert type(came) is type(value)
    if not text.startswith(("'", "!")):
        assert scalar(text) == value
        assert load(f"key: {text}", strings=True)["key"] == text


def test_not_a_number_is_a_number():
    assert math.isnan(load(".nan"))


@given(st.integers(-(10**30), 10**30), st.integers(0, 5))
def test_leading_zeros_change_no_integer(number, zeros):
    sign = "-" if number < 0 else ""
    assert load(f"{sign}{'0' * zeros}{abs(number)}") == number


@given(st.floats(allow_nan=False))
def test_a_float_is_read_as_python_writes_it(number):
    text = repr(number).replace("inf", ".inf")
    assert load(text) == number
    assert type(load(text)) is float


_TEXT = st.text(st.characters(exclude_categories=("Cs",)))
_ODD = ["0100", "1e3", "0o7", "yes", "~", "1:4", "2024-01-01", "", "<<", "=", "1_0", "0x1F", ".5", "true"]
_DOUBLED = "\n".join(["- &a0 {k: 1}", *(f"- &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))])
_LISTS = "\n".join(["- &a0 [1]", *(f"- &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))])
_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT | st.sampled_from(_ODD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(_PLAIN)
def test_what_is_written_is_read_again_here_and_by_yaml_1_1(value):
    text = dump_yaml(value)
    assert load(text) == value
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: &a [*a]", r"^file: line 1, column 11: not valid YAML: \*a contains itself$"),
        ("a: &x {b: *x}", "contains itself"),
        ("a: &x\n  - [1, {b: [*x]}]", "contains itself"),
        ("[" * 2000, "nested deeper than 100 levels"),
        ("{a: " * 2000, "nested deeper than 100 levels"),
        ("- " * 2000 + "1", "nested deeper than 100 levels"),
        ("[" * 2000 + "]" * 2000, "nested deeper than 100 levels"),
        ("\n".join(["- &a0 []", *(f"- &a{i} [*a{i - 1}]" for i in range(1, 200))]), "nested deeper than 100 levels"),
        (
            _LISTS,
            "more than 100,000 values",
        ),
        (
            _DOUBLED,
            "more than 100,000 values",
        ),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: not valid YAML: key 'a' occurs twice"),
        ("1: a\n0x1: b", "key '0x1' occurs twice"),
        ("? [a]\n: b", "a key is a list or mapping"),
        ("a: !!python/object/apply:os.system [echo]", "unknown tag '!!python/object/apply:os.system'"),
        ("a: !own 1", "unknown tag '!own'"),
        ("a: !!timestamp 2024-01-01", "unknown tag '!!timestamp'"),
        ("a: !!int 1:4", "'1:4' cannot be read as int"),
        ("a: " + "9" * 5000, "cannot be read as int"),
        ('a: "\\ud800"', "surrogate"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("a: *missing", "undefined alias"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("\ta: 1", "line 1, column 1"),
    ],
)
@pytest.mark.parametrize("strings", [False, True])
def test_what_is_refused_is_said_in_one_line(text, message, strings):
    if strings and text in ("1: a\n0x1: b", "a: !!int 1:4", "a: " + "9" * 5000):
        pytest.skip("text it stays")
    with pytest.raises(DataError, match=message) as caught:
        load(text, error=DataError, strings=strings)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_bounds_leave_room():
    assert load("[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1))
    assert len(load("\n".join(f"- {i}" for i in range(5000)))) == 5000
    assert load("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]")["b"] == {"x": 1, "y": 2}
    with pytest.raises(SpaceError, match="at most 10,000,000 characters"):
        load("a" * 10_000_001, error=SpaceError)


@given(st.text(st.sampled_from(list("ab01:-[]{}&*!\"'|>#%@`,? \n\t~.<=xé\\")), max_size=60), st.booleans())
def test_any_text_is_read_or_refused(text, strings):
    with suppress(InputError):
        load(text, strings=strings)


def test_text_stays_as_typed():
    text = "names: [no, 1.50, 0100, null, ~, true]\nnc: 6"
    assert load(text, strings=True) == {"names": ["no", "1.50", "0100", "null", "~", "true"], "nc": "6"}
