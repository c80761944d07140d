"""The password of a storage URL stands nowhere that is written or shown: reports, JSON, dashboard, messages."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sqlite3
import string
import sys
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_evaluator import PROTOCOL, InstantEvaluator, space
from tables import realistic_table, study_meta
from test_search_storage import OLD

from fpn_bench.redact import redact, redact_command, redact_text, shell_command
from fpn_bench.reports import write_report
from fpn_bench.search import load_study, run_study
from fpn_bench.search.detectors import _command

SECRET = "tr0ub4dor"
URLS = (
    f"postgresql://me:{SECRET}@host/db",
    f"postgresql+psycopg://me:{SECRET}@host:5432/db?sslmode=require",
    f"postgresql://:{SECRET}@host/db",
    f"postgresql://me@corp:{SECRET}@host/db",
    f"postgresql://me:a%40{SECRET}%2Fz@host/db",
    f"postgresql://me:p@{SECRET}@host/db",
    f"postgresql://me:p/{SECRET}@host/db",
    f"postgresql://me:p:{SECRET}@host/db",
    f"postgresql://host/db?user=me&password={SECRET}",
    f"postgresql:///db?host=/run&sslpassword={SECRET}&connect_timeout=5",
    f"mysql+pymysql://host/db?passwd={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3D{SECRET}%3BDATABASE%3Ddb",
)
NEVER_CHANGED = (
    "sqlite:////home/me/a:b@c/study.db",
    "results/quickstart/study.db",
    "postgresql://me@host:5432/db?sslmode=require",
    "see https://example.org:8080/page?a=b",
    "fpn-bench search quickstart --data 'my data' --trials 8",
    "latency_ms 24.1 > 24; AP = 3",
)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("form", ["{}", "--storage {}", "--storage={}", "cannot open '{}': no such host ({})"])
def test_no_spelling_of_a_url_keeps_its_password(url, form) -> None:
    text = form.replace("{}", url)
    assert SECRET not in redact_text(text)
    assert SECRET not in redact_command(text)
    assert SECRET not in shell_command(["fpn-bench", "search", form.replace("{}", url)])
    assert "host" in redact_text(url) or "db" in redact_text(url), "the rest says where the study is"


@pytest.mark.parametrize("text", NEVER_CHANGED)
def test_what_has_no_password_stays_as_it_is(text) -> None:
    assert redact_text(text) == redact_command(text) == text == redact({"commands": [text]})["commands"][0]


@given(st.text(string.printable + "éß漢", min_size=4).map(lambda text: f"x{text}x"), st.booleans(), st.booleans())
def test_any_password_is_hidden_in_a_command(password, encoded, joined) -> None:
    url = f"postgresql://me:{quote(password, safe='') if encoded else password}@host/db"
    words = ["fpn-bench", "search", "tiny", *([f"--storage={url}"] if joined else ["--storage", url])]
    hidden = [f"--storage={'postgresql://me:***@host/db'}"] if joined else ["--storage", "postgresql://me:***@host/db"]
    assert shlex.split(shell_command(words))[3:] == hidden
    assert shlex.split(redact_command(shlex.join(words)))[3:] == hidden  # as studies of older releases have it


def test_the_command_is_stored_without_its_password(monkeypatch) -> None:
    for url in URLS:
        monkeypatch.setattr(sys, "argv", ["/bin/fpn-bench", "search", "tiny", "--storage", url])
        assert SECRET not in _command()
        monkeypatch.setattr(sys, "argv", ["/bin/fpn-bench", "search", "tiny", f"--storage={url}"])
        assert SECRET not in _command()


@pytest.fixture(scope="module", params=["version 1", "today's"])
def old_study(request, tmp_path_factory):
    """A study as an older release left it: with commands as they were typed, and an error that quotes a URL."""
    folder = tmp_path_factory.mktemp("old") / "begun_before"
    folder.mkdir()
    database = folder / "study.db"
    rows = "trial_user_attributes SET value_json = ? WHERE key = 'row' AND value_json = ?"
    if request.param == "version 1":
        shutil.copy(OLD, database)
        read = "SELECT value_json FROM trial_user_attributes WHERE key = 'row'"
    else:
        searched = space(budget={"trials": 3})
        run_study(searched, InstantEvaluator(searched), PROTOCOL, folder, share=False)
        read = "SELECT columns FROM fpn_bench_trial WHERE state = 'finished'"
        rows = "fpn_bench_trial SET columns = ? WHERE columns = ?"
    commands = [shlex.join(["fpn-bench", "search", "tiny", "--storage", url]) for url in URLS]
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        (row,) = connection.execute(read).fetchone()
        failed = {**json.loads(row), "status": "failed", "reason": f"lost connection to {URLS[0]}"}
        assert connection.execute(f"UPDATE {rows}", (json.dumps(failed), row)).rowcount == 1
        (told,) = connection.execute("SELECT value_json FROM study_user_attributes WHERE key = 'metadata'").fetchone()
        typed = {**json.loads(told), "commands": commands, "warnings": [f"slow: {URLS[0]}"]}
        connection.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = 'metadata'", (json.dumps(typed),)
        )
    assert b"".join(path.read_bytes() for path in folder.glob("study.db*")).count(SECRET.encode()) > len(URLS)
    return folder


def test_studies_of_older_releases_are_masked_on_reading(old_study, tmp_path, cli) -> None:
    study = load_study(old_study)
    assert SECRET not in json.dumps(study.metadata()) + study.table().to_csv()
    assert len(study.metadata()["commands"]) == len(URLS)
    out = tmp_path / "report.html"
    code, _, _ = cli("report", str(old_study), "--to", str(out), "--format", "html,csv,md,json")
    assert code == 0
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(written) == 6
    assert not [path.name for path in written if SECRET in path.read_text()]
    assert "postgresql://me:***@host/db" in out.read_text()
    code, text, _ = cli("compare", str(old_study), str(old_study), "--json")
    assert code == 0
    assert SECRET not in text


def test_the_dashboard_shows_no_password(old_study) -> None:
    dashboard = pytest.importorskip("fpn_bench.reports.dashboard_feed")
    study = load_study(old_study)
    feed = dashboard.Feed(lambda: [(study.table(), study.metadata(), study.samples)])
    report = feed.report(dashboard.parse_filters({"studies": [0], "picked": [], "bounds": []}))
    assert SECRET not in repr(report.sections) + repr(report.mind)

    def lost():
        raise RuntimeError(f"cannot open {URLS[0]}")

    feed.read, feed._next_s = lost, 0.0
    feed.refresh()
    assert feed.problem
    assert SECRET not in feed.problem


def test_a_report_from_metadata_of_ones_own_is_masked_too(tmp_path) -> None:
    files = write_report(
        realistic_table(8),
        study_meta(commands=list(URLS), notes=[URLS[0]]),
        tmp_path / "r.html",
        formats=["html", "json"],
    )
    assert not [path for path in files if SECRET in path.read_text()]


@pytest.mark.parametrize("url", [*URLS[:3], *(pytest.param(url, marks=pytest.mark.slow) for url in URLS[3:])])
def test_messages_quote_no_password(url, cli, tmp_path) -> None:
    for arguments in (
        ("report", url),
        ("report", f"--storage={url}"),
        ("report", "x", "--format", url),
        ("compare", url, url),
        ("dashboard", url),
        ("dashboard", "x", "--port", url),
        ("export", url, "--to", "onnx"),
        ("export", "x.safetensors", "--to", "onnx", "--model", url),
        ("predict", url, "--model", url),
        ("train", url),
        (url,),
    ):
        code, out, err = cli(*arguments)
        assert code != 0, arguments
        assert SECRET not in out + err, arguments
