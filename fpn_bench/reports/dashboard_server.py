"""Serves the live page: the port it listens on, who may ask."""

from __future__ import annotations

import socket

from dash import Dash
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from fpn_bench.errors import InputError


class _Quiet(WSGIRequestHandler):
    """Says nothing of requests that went well: a page that looks every second makes many."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing."""


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket on ``port``; with None on 8050 or the next one free.

    Raises:
        InputError: the port is taken, or this machine has no such address.
    """
    reason = ""
    for candidate in (port,) if port is not None else range(8050, 8150):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return socket.create_server((host, candidate), family=family)
        except (OSError, OverflowError) as error:
            reason = str(error)
    where = f"port {port}" if port is not None else "none of the ports 8050 to 8149"
    raise InputError(f"{where} can be used on {host} ({reason}); name a free one with --port, or leave it out")


def server_of(app: Dash, listening: socket.socket) -> BaseWSGIServer:
    """What answers on a listening socket, a thread a request."""
    host, port = listening.getsockname()[:2]
    if is_loopback(host):  # another site's name that leads here is none of ours
        app.server.config["TRUSTED_HOSTS"] = ["localhost", "127.0.0.1", "[::1]", host]
    return make_server(host, port, app.server, threaded=True, request_handler=_Quiet, fd=listening.detach())


def serve(app: Dash, listening: socket.socket) -> None:
    """Serve until Ctrl-C."""
    server_of(app, listening).serve_forever()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host == "localhost" or host == "::1" or host.startswith("127.")
