"""The table every result stands in: one row a candidate-seed. Its columns, its checks and its CSV form.

A table is a plain `pandas.DataFrame` with the columns of `COLUMNS`, one column ``choice.<key>`` for each searched
choice, and ``schema_version`` in every row, so that a CSV cut out of a larger one still says what it is.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from fpn_bench.errors import FormatVersionError, InputError, ProtocolError, UnknownNameError
from fpn_bench.metrics import Direction, metric_of, metrics
from fpn_bench.paths import write_text_atomic

SCHEMA_VERSION = 1
CHOICE_PREFIX = "choice."
STATUSES = ("complete", "stopped", "continued", "rejected", "failed", "repeat", "running")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf(?:inity)?)|nan", re.IGNORECASE)
SEARCHED = ("sampled", "enqueued", "confirmed")
"""Sources of what a search tried, beside what it is held against."""
SOURCES = ("published", *SEARCHED, "listed")

Kind = Literal["str", "int", "float", "bool"]
DTYPES: dict[Kind, str] = {"str": "str", "int": "Int64", "float": "float64", "bool": "boolean"}
"""Missing values: ``""`` in text, NaN in floats, <NA> in whole numbers and truth values."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, the kind of its values and what they mean; tables from before a `later` one lack it."""

    name: str
    kind: Kind
    meaning: str
    later: bool = False


def _metric_column(name: str) -> Column:
    metric = metric_of(name)
    return Column(name, metric.kind, metric.meaning, metric.later)


COLUMNS: tuple[Column, ...] = (
    Column("schema_version", "int", "version of this table's form"),
    Column("study", "str", "name of the study"),
    Column("trial", "int", "number of the trial in its study, from 0"),
    Column("candidate", "str", "id of backbone + neck graph + head + image size"),
    Column(
        "status",
        "str",
        "complete | stopped (at a rung; may go on) | continued (in a later trial) | rejected (over a hard constraint) "
        "| failed | repeat | running",
    ),
    Column("reason", "str", "why it was rejected or failed"),
    Column("source", "str", "published | sampled | enqueued | confirmed (a further seed) | listed (of a suite)"),
    Column("neck", "str", "neck family in the zoo"),
    Column("neck_label", "str", "the neck for people, e.g. 'fpn 64ch P3-P5'"),
    Column("seed", "int", "seed of the training"),
    Column("protocol", "str", "id of the protocol the AP was taken under"),
    Column("dataset", "str", "name of the data set"),
    Column("image_height", "int", "pixels"),
    Column("image_width", "int", "pixels"),
    Column("backbone", "str", "timm name"),
    Column("weights", "str", "id of the backbone's weights"),
    Column("weights_random", "bool", "the frozen backbone has random weights: AP says little"),
    Column("adapter", "str", "what makes the levels the backbone lacks: none (it lacks none) | simple | taps"),
    Column("image_mean", "str", "subtracted from RGB in 0..1, one value a channel"),
    Column("image_std", "str", "divided by then, one value a channel"),
    Column("interpolation", "str", "how images are resized"),
    Column("padded_height", "int", "pixels the backbone runs on, zeros below the image included"),
    Column("padded_width", "int", "pixels the backbone runs on, zeros right of the image included"),
    Column("head", "str", "detection head"),
    Column("epochs", "int", "passes over the training split"),
    Column("epochs_trained", "int", "those of them that this trial made", later=True),
    Column("paid", "float", "what the trial was charged, in whole trainings", later=True),
    Column("ap_curve", "str", "JSON: [epochs, AP] pairs, as far as AP was taken", later=True),
    Column("val_loss_curve", "str", "JSON: [epochs, loss] pairs, mean over the val split's batches", later=True),
    Column("continues", "int", "the trial whose training this one took up again", later=True),
    Column("shared_from", "str", "the study that the training was taken over from", later=True),
    Column("attempt", "int", "1, or more where earlier trials of this candidate died", later=True),
    *map(_metric_column, ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")),
    *map(_metric_column, ("params", "macs", "adapter_params", "adapter_macs", "neck_params", "neck_macs")),
    _metric_column("latency_ms"),
    Column("latency_low_ms", "float", "lower end of the median's 95 % interval"),
    Column("latency_high_ms", "float", "upper end of the median's 95 % interval"),
    Column("latency_p90_ms", "float", "90th percentile of the forward time"),
    Column("latency_clock_ms", "float", "the same median as the clock said it", later=True),
    Column("latency_speed", "float", "the device's speed meanwhile, as a share of its reference speed", later=True),
    Column(
        "latency_predicted_ms", "float", "what was predicted before anything was built; never a measurement", later=True
    ),
    Column("latency_predicted_low_ms", "float", "lower end of the prediction's 95 % interval", later=True),
    Column("latency_predicted_high_ms", "float", "upper end of the prediction's 95 % interval", later=True),
    Column("latency_device", "str", "device the latency was measured on"),
    Column("latency_batch", "int", "images a batch", later=True),
    Column("latency_precision", "str", "fp32 | tf32 | fp16 | bf16", later=True),
    Column("latency_memory_format", "str", "contiguous | channels_last", later=True),
    Column("latency_mode", "str", "eager | compiled | cuda_graph", later=True),
    Column("latency_cache", "str", "warm | cold: whether caches were overwritten before each call", later=True),
    Column("latency_samples", "int", "calls that were timed", later=True),
    Column(
        "latency_converged",
        "bool",
        "half the interval of this measurement alone is below 1 % of the median",
        later=True,
    ),
    Column(
        "latency_clock_mhz", "float", "median clock of the device meanwhile; missing where it reports none", later=True
    ),
    Column("latency_temperature_c", "float", "highest temperature of the device meanwhile", later=True),
    Column("latency_power_w", "float", "median power of the device meanwhile", later=True),
    Column("latency_throttled_samples", "int", "timed calls during which the device held its clock back", later=True),
    *map(_metric_column, ("energy_j", "peak_mib")),
    Column("train_s", "float", "seconds of training"),
    Column("total_s", "float", "seconds of the whole trial"),
    Column("overhead_s", "float", "seconds of the driver itself: all that is not build, profile, train, evaluate"),
    Column("cached", "str", "what of the backbone's work is kept on disk: all, up to a level Ck, or nothing"),
    Column("cache_hit", "bool", "the features were already on disk"),
    Column("started_at", "str", "ISO 8601"),
    Column("machine", "str", "id of the machine"),
    Column("machine_label", "str", "the machine for people"),
    Column("torch", "str", "version of torch"),
    Column("fpn_bench", "str", "version of fpn_bench"),
    Column("graph", "str", "canonical JSON of the neck graph"),
)
_OWN = {column.name for column in COLUMNS}


def table_columns() -> tuple[Column, ...]:
    """`COLUMNS`, and one for each further metric that is registered."""
    return (*COLUMNS, *(_metric_column(metric.name) for metric in metrics() if metric.name not in _OWN))


def numeric_columns() -> tuple[str, ...]:
    """Names of the columns that hold numbers: metrics, and what else a table can be ordered by."""
    return tuple(c.name for c in table_columns() if c.kind in ("int", "float") and c.name != "schema_version")


@dataclass(frozen=True, slots=True)
class Objective:
    """A column and whether more or less of it is better."""

    name: str
    direction: Direction

    @property
    def maximize(self) -> bool:
        return self.direction == "maximize"


def parse_objectives(objectives: Sequence[Mapping[str, str] | Objective]) -> tuple[Objective, ...]:
    """Objectives as they stand in a study's metadata: ``[{"name": "ap", "direction": "maximize"}, ...]``.

    Raises:
        UnknownNameError: a name that is no numeric column, or a direction that is none.
        InputError: no objectives, or one twice.
    """
    parsed = []
    for given in objectives:
        objective = given if isinstance(given, Objective) else _objective(given)
        if objective.name not in (known := numeric_columns()):
            raise UnknownNameError("objective", objective.name, known)
        parsed.append(objective)
    names = [objective.name for objective in parsed]
    if not names or len(set(names)) < len(names):
        raise InputError(f"expected at least one objective, each once, got {names}")
    return tuple(parsed)


def _objective(given: Mapping[str, str]) -> Objective:
    return Objective(str(given.get("name")), parse_direction(str(given.get("direction"))))


def parse_direction(text: str) -> Direction:
    """The direction ``text`` names; British spelling is understood.

    Raises:
        UnknownNameError: neither of the two.
    """
    match text:
        case "maximize" | "maximise":
            return "maximize"
        case "minimize" | "minimise":
            return "minimize"
    raise UnknownNameError("direction", text, ("maximize", "minimize"))


def merit_first(objectives: Iterable[Objective]) -> tuple[Objective, ...]:
    """The objectives, what is trained for before what it costs: AP, then what else a training decides, then the rest.

    So the first is the merit by which candidates are compared at the same costs.
    """
    known = {metric.name for metric in metrics("trained")}
    return tuple(sorted(objectives, key=lambda o: (o.name != "ap", o.name not in known)))


def empty_table() -> pd.DataFrame:
    """A table without rows: every column, each of its dtype."""
    return pd.DataFrame({c.name: pd.Series(dtype=DTYPES[c.kind]) for c in table_columns()})


def make_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of ``rows``; what a row leaves out is missing. Checked as `check_table` does."""
    given = pd.DataFrame([dict(row) for row in rows], dtype=object)  # object: a missing value makes no 3 a 3.0
    missing = {c.name: _empty_column(c.kind, given.index) for c in table_columns() if c.name not in given.columns}
    if "schema_version" in missing:
        missing["schema_version"] = pd.Series(SCHEMA_VERSION, index=given.index, dtype=DTYPES["int"])
    return check_table(pd.concat([given, pd.DataFrame(missing)], axis=1))


def _empty_column(kind: Kind, index: pd.Index[Any]) -> pd.Series[Any]:
    """A column without a value, of its dtype from the beginning: a cast takes longer."""
    return pd.Series("" if kind == "str" else None, index=index, dtype=DTYPES[kind])


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with its columns in order and each of its dtype; the argument is left as it was.

    Choices become text (a string as it is, anything else as JSON), so that a table equals what is read back of it.

    Raises:
        FormatVersionError: rows written by a newer fpn_bench.
        InputError: a column missing or unknown, a value of the wrong kind, an unknown status or source.
    """
    if "schema_version" not in table.columns:
        raise InputError("expected a table made by make_table or read_csv, got one without the column 'schema_version'")
    versions = pd.to_numeric(table["schema_version"], errors="coerce")
    if (versions > SCHEMA_VERSION).any():
        raise FormatVersionError(
            f"the table has schema version {int(versions.max())}, this fpn_bench reads up to {SCHEMA_VERSION}: "
            "`pip install --upgrade fpn-bench`"
        )
    if (versions != SCHEMA_VERSION).any():
        raise InputError(f"expected schema_version {SCHEMA_VERSION} in each row of the table, got rows without one")
    absent = [c.name for c in COLUMNS if c.name not in table.columns]
    if absent:
        raise InputError(f"the table lacks the columns {', '.join(absent)}: make_table fills what rows leave out")
    choices = [name for name in table.columns if str(name).startswith(CHOICE_PREFIX)]
    wanted = table_columns()
    known = {c.name for c in wanted}
    for name in table.columns:
        if name not in known and name not in choices:
            hint = "fpn_bench.analysis.COLUMNS; a metric of your own is a column once it is registered"
            raise UnknownNameError("column", str(name), known, hint)
    columns = {
        c.name: _cast(table[c.name], c.kind) if c.name in table.columns else _empty_column(c.kind, table.index)
        for c in wanted
    }
    columns |= {name: _cast(table[name].map(_choice_text), "str") for name in sorted(choices)}
    checked = pd.DataFrame(columns, index=table.index).reset_index(drop=True)
    for name, allowed in (("status", STATUSES), ("source", SOURCES)):
        for value in checked[name].unique():
            if value not in allowed:
                raise UnknownNameError(name, value, allowed)
    return checked


def _choice_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or value != value:  # an inactive choice: None, <NA> or NaN
        return ""
    return json.dumps(value, sort_keys=True, default=str)


def _cast(values: pd.Series[Any], kind: Kind) -> pd.Series[Any]:
    if values.dtype == DTYPES[kind] and (kind != "str" or (values.dtype != object and values.notna().all())):
        return values
    try:
        if kind == "str":
            return values.astype(object).where(values.notna(), "").astype(str).astype("str")
        if kind == "bool":
            return values.astype(object).where(values.notna(), None).astype("boolean")
        if any(isinstance(value, str) for value in values):
            raise ValueError("text is no number")
        if kind == "int":
            return values.astype(object).where(values.notna(), None).astype("Int64")
        return values.astype(object).where(values.notna(), float("nan")).astype("float64")
    except (TypeError, ValueError, OverflowError) as error:
        got = sorted(
            {repr(v)[:80] for v in values.dropna() if isinstance(v, str)} or {repr(v)[:80] for v in values.dropna()}
        )[:3]
        raise InputError(f"column {values.name!r}: expected {kind}, got {', '.join(got)} ({error})") from error


def one_protocol(table: pd.DataFrame, *, mix_protocols: bool = False) -> str:
    """The id of the protocol all rows were taken under; ``""`` for an empty table.

    A row that has not finished may lack its protocol.

    With ``mix_protocols`` several ids are let through and come back joined with ``+``.

    Raises:
        ProtocolError: rows of two protocols.
    """
    told = table[(table["protocol"] != "") | (table["status"] == "complete")]
    ids = list(dict.fromkeys(told["protocol"]))
    if len(ids) > 1 and not mix_protocols:
        named = " and ".join(f"{i!r} ({_row_text(table[table['protocol'] == i])})" for i in ids[:2])
        raise ProtocolError(
            f"expected rows of one protocol, got {len(ids)}: {named}, whose AP figures do not compare; take one with "
            f"table[table.protocol == {ids[0]!r}], or say mix_protocols=True (--mix-protocols)"
        )
    return "+".join(ids)


def _row_text(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return f"{row['dataset']}, {row['image_height']}x{row['image_width']}, {row['epochs']} epochs, {len(rows)} rows"


def json_value(value: Any) -> Any:
    """A table's value as JSON has it; None for what is missing or no finite number."""
    if value is None or value is pd.NA:
        return None
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def json_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of any table as JSON has them."""
    return [{str(name): json_value(value) for name, value in row.items()} for row in table.to_dict("records")]


def write_csv(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write the checked table as CSV (UTF-8); whole or not at all."""
    return write_text_atomic(path, csv_text(check_table(table)))


def csv_text(table: pd.DataFrame) -> str:
    """Any table as CSV, without its index; text in quotes, which keep lone carriage returns and empty text."""
    return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


def read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what `write_csv` wrote: the equal table, down to NaN, whole numbers and truth values.

    Raises:
        InputError: no such file, or not a CSV table of fpn_bench.
        FormatVersionError: written by a newer fpn_bench.
    """
    try:
        header, rows = csv_rows(Path(path))
        raw = pd.DataFrame(rows, columns=header, dtype=object)
    except FileNotFoundError as error:
        raise InputError(f"no table at {os.fspath(path)}; expected a CSV written by write_csv or a report") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{os.fspath(path)} is no CSV table: {error}") from error
    truth = {"True": True, "False": False, "": None}
    kinds: dict[str, Kind] = {column.name: column.kind for column in table_columns()}
    for name in raw.columns:
        kind = kinds.get(name, "str")
        if kind == "bool":
            raw[name] = pd.Series([truth.get(v, v) for v in raw[name]], dtype=object)
        elif kind == "int":
            raw[name] = pd.Series([_whole(v) for v in raw[name]], dtype=object)
        elif kind == "float":
            raw[name] = pd.Series([_real(v) for v in raw[name]], dtype=object)
    absent = [c.name for c in COLUMNS if c.later and c.name not in raw.columns]
    raw = pd.concat([raw, pd.DataFrame({name: [None] * len(raw) for name in absent}, index=raw.index)], axis=1)
    return check_table(raw)


def csv_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The names in the first line of a CSV file (UTF-8), and the rows below it, as text.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no CSV, a column is named twice, or a row has more or fewer values than there are columns.
    """
    csv.field_size_limit(2**31 - 1)  # neck graphs are long
    text = path.read_bytes().decode("utf-8-sig")
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    header = rows[0] if rows else []
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"expected each column once, got {twice[:80]!r} several times")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} values in row {number}, got {len(row)}")
    if not header:
        raise ValueError("expected a line of column names, got an empty file")
    return header, rows[1:]


def parse_number(text: str) -> float:
    """The number that is written in ASCII as JSON or Python's ``repr`` writes it, NaN and infinities included.

    Python's own ``float`` also takes ``1_0``, digits of other scripts, and makes an infinity of ``1e999``.

    Raises:
        ValueError: it is none.
    """
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"expected a number, got {text[:80]!r}")
    value = float(text)
    if math.isinf(value) and "inf" not in text.lower():
        raise ValueError(f"expected a number within the range of a float, got {text[:80]!r}")
    return value


def parse_whole(text: str) -> int:
    """As `parse_number`, a whole number of at most 18 digits.

    Raises:
        ValueError: it is none.
    """
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"expected a whole number, got {text[:80]!r}")
    return int(text)


def _real(text: str) -> float | str:
    """The number in ``text``; NaN for nothing; the text itself when it is no number, for the check to refuse."""
    try:
        return parse_number(text) if text else math.nan
    except ValueError:
        return text


def _whole(text: str) -> int | str | None:
    """The number in ``text``; None for nothing; the text itself when it is no number, for the check to refuse."""
    try:
        return parse_whole(text) if text else None
    except ValueError:
        return text


def check_file_name(name: str, kind: str) -> str:
    """``name``, which becomes a file or folder of that name and nothing else.

    Args:
        name: as it was given.
        kind: what it names, for the message.

    Raises:
        InputError: it is empty, leads elsewhere, or holds what no file system takes.
    """
    printable = bool(name.strip()) and name.isprintable() and not set(name) & set('/\\:*?"<>|')
    if not printable or set(name) <= {"."} or len(name.encode(errors="replace")) > 200:
        raise InputError(
            f"expected a {kind} name that can be a file's, got {name[:80]!r}; try letters, digits, '-', '_' and '.'"
        )
    return name
