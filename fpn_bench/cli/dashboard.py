"""`fpn-bench dashboard`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpn_bench.cli.app import app, err, out
from fpn_bench.errors import InputError

if TYPE_CHECKING:
    from fpn_bench.reports.evidence import StudyData
    from fpn_bench.search import Study


@app.command()
def dashboard(
    studies: Annotated[
        list[str], typer.Argument(help="Folders of studies (results/NAME), their study.db, or storage URLs.")
    ],
    name: Annotated[
        list[str] | None, typer.Option(help="Of the study, where a database holds several; may be given several times.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine reaches it.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="8050 or the next one free by default; 0: any one free.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.2, max=3600.0, help="Seconds between two looks at the studies.")] = 1.0,
    mix_protocols: Annotated[
        bool, typer.Option("--mix-protocols", help="Let rows of several protocols stand side by side.")
    ] = False,
) -> None:
    """A live page over studies, running or not: the report's figures, refreshed, filtered, side by side. Only reads.

    Open the address that it prints. Ctrl-C ends it; the studies never notice.
    """
    followed = [_Followed(study, own) for study, own in _named(studies, name or [])]
    from fpn_bench.reports.dashboard import make_app
    from fpn_bench.reports.dashboard_server import is_loopback, listen, serve

    page = make_app(lambda: [study.read() for study in followed], every_s=every, mix_protocols=mix_protocols)
    listening = listen(host, port)
    if not is_loopback(host):
        err.print(f"anyone who reaches {host} can read what is shown: there is no password", markup=False)
    address = f"[{host}]" if ":" in host else host
    out.print(f"http://{address}:{listening.getsockname()[1]}/  (Ctrl-C ends it)", soft_wrap=True, markup=False)
    serve(page, listening)
    err.print("fpn-bench: stopped")


def _named(studies: Sequence[str], names: Sequence[str]) -> list[tuple[str, str | None]]:
    """Each study with its name in its database: one name for each, or several studies of one database."""
    if len(studies) == 1 and names:
        return [(studies[0], name) for name in names]
    if names and len(names) != len(studies):
        raise InputError(f"expected one --name for each of {len(studies)} studies, or none, got {len(names)}")
    return [(study, names[i] if names else None) for i, study in enumerate(studies)]


class _Followed:
    """A study that is read again and again, and opened again when its database was lost or replaced."""

    def __init__(self, place: str, name: str | None) -> None:
        """Opens it.

        Raises:
            InputError: there is no study.
        """
        self._place, self._name = place, name
        self._study: Study | None = None
        self._file: tuple[int, int] | None = None
        self._open()

    def read(self) -> StudyData:
        """Table, metadata and samples as they are now; whatever the storage raises while it cannot be read."""
        try:
            if self._study is None or self._file != self._identity():
                self._open()
            assert self._study is not None
            return self._study.table(), self._study.metadata(), self._study.samples
        except Exception:
            self._study = None
            raise

    def _open(self) -> None:
        from fpn_bench.search import load_study

        self._study = load_study(self._place, self._name)
        self._file = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        """Of the database file: an open one that was deleted can still be read, and says nothing new any more."""
        from fpn_bench.search.database import DATABASE, is_url

        if is_url(self._place):
            return None
        path = Path(self._place)
        path = path / DATABASE if path.is_dir() else path
        try:
            found = path.stat()
        except OSError as error:
            raise InputError(f"{path} is not there") from error
        return found.st_dev, found.st_ino
