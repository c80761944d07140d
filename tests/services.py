"""Real services for tests and benchmarks: a PostgreSQL server of its own, in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER_MISSING = "PostgreSQL's server is needed: `apt-get install postgresql` (initdb is neither on PATH nor under {})"
PLACES = Path("/usr/lib/postgresql")
"""Where Debian puts each version."""


class Postgres:
    """A server on a free port of 127.0.0.1, which trusts everyone here. To be stopped by who made it."""

    def __init__(self) -> None:
        """Made and started. Raises FileNotFoundError where no server is installed."""
        self._programs = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="fpn_bench_postgres"))
        self._data = self._folder / "data"
        # The server refuses to run as root; Debian's package makes a user for it.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "--pgdata", str(self._data), "--username=fpn_bench", "--auth=trust", "--no-sync")
        self.start()

    def url(self, driver: str = "+psycopg") -> str:
        """Of its database, as SQLAlchemy wants it."""
        return f"postgresql{driver}://fpn_bench@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Returns when it answers."""
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1"
        log = str(self._folder / "log")
        self._control("start", "--wait", "--timeout=60", "--log", log, "--options", options)

    def stop(self) -> None:
        """Ends it and every connection at once, in order."""
        self._control("stop", "--wait", "--mode=fast")

    def kill(self) -> None:
        """Ends it as a fault would: clients lose their connections in mid-statement, and the log is replayed later."""
        os.kill(int((self._data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
        while (self._data / "postmaster.pid").exists():
            signal.sigtimedwait((), 0.05)

    def close(self) -> None:
        """Stop it for good."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)

    def _control(self, action: str, *options: str) -> None:
        self._run("pg_ctl", action, "--silent", "--pgdata", str(self._data), *options)

    def _run(self, program: str, *arguments: str) -> None:
        owner = {} if self._user is None else {"user": self._user, "group": self._user, "extra_groups": []}
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(
            command, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **owner
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")


def _programs() -> Path:
    """Folder of the newest server here."""
    found = sorted(PLACES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])) if PLACES.is_dir() else []
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise FileNotFoundError(SERVER_MISSING.format(PLACES))
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


@pytest.fixture(scope="session", name="postgres")
def postgres_fixture() -> Iterator[Postgres]:
    """A running server. A machine without one fails the tests that were asked for with ``-m services``."""
    try:
        server = Postgres()
    except FileNotFoundError as error:
        pytest.fail(str(error))
    yield server
    server.close()
