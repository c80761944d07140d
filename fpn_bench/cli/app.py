"""The `fpn-bench` command and what all of its commands share: options, errors, exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from fpn_bench import __version__
from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.redact import redact_text


def printable(text: str) -> str:
    """``text`` with a question mark for what would steer the terminal, or is no character: names come out of files."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


class _SafeConsole(Console):
    """Prints no text that is not `printable`; colours come from styles, never from text."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See `Console.render_str`."""
        return super().render_str(printable(text), **options)


# What is piped or redirected is read by programs and greps: one line a row, whatever 80 columns would do to it.
_in_pipe = not sys.stdout.isatty() and "COLUMNS" not in os.environ
out = _SafeConsole(highlight=False, soft_wrap=False, width=400 if _in_pipe else None)
err = _SafeConsole(stderr=True, highlight=False, soft_wrap=True)


class _Commands(TyperGroup):
    """Commands in the order they are used in, not that of their modules."""

    ORDER = (
        *("search", "worker", "bench", "report", "dashboard", "compare", "train", "export", "predict", "profile"),
        *("data", "backbones", "necks", "spaces"),
    )

    def invoke(self, ctx: Any) -> Any:
        """Says so when Ctrl-C ends a command, which typer does not."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("fpn-bench: stopped")
            raise
        except Exception as error:  # typer's complaint about an argument quotes it, and it may be a storage URL
            if isinstance(message := getattr(error, "message", None), str):
                error.message = redact_text(message)  # type: ignore[attr-defined]
            raise

    def list_commands(self, ctx: object) -> list[str]:
        return sorted(self.commands, key=lambda name: self.ORDER.index(name) if name in self.ORDER else len(self.ORDER))


app = typer.Typer(
    cls=_Commands,
    name="fpn-bench",
    help="Search, measure and compare feature-pyramid necks on any timm backbone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fpn-bench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Search, measure and compare feature-pyramid necks on any timm backbone."""


def main() -> None:
    """Run the command line. Exit 2: something given cannot be used; 1: another known failure; 130: Ctrl-C."""
    # Imported for their effect: each module adds its commands to `app`.
    from fpn_bench.cli import (  # noqa: F401
        bench,
        choose,
        compare,
        dashboard,
        data,
        export,
        lists,
        predict,
        profile,
        report,
        search,
        train,
    )

    try:
        app()
    except FpnBenchError as error:
        message = redact_text(" ".join(str(error).split()))
        err.print(f"fpn-bench: {message}", markup=False)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:  # before or behind the command itself
        err.print("fpn-bench: stopped")
        sys.exit(130)
    except BrokenPipeError:  # the reader (`head`, a pager) has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a path that cannot be written, a full disk
        err.print(f"fpn-bench: {redact_text(str(error))}", markup=False)
        sys.exit(1)


def parse_image_size(text: str) -> tuple[int, int]:
    """``"640x480"`` -> (height 640, width 480); one number is a square."""
    parts = text.lower().split("x")
    if len(parts) == 1:
        parts *= 2
    try:
        height, width = (int(part) for part in parts)
    except ValueError:
        raise InputError(f"expected an image size as HEIGHTxWIDTH in pixels, e.g. 640x640, got {text!r}") from None
    if height < 1 or width < 1:
        raise InputError(f"expected an image size of at least 1x1, got {text!r}")
    return height, width


def parse_levels(text: str) -> tuple[int, ...]:
    """``"3-5"`` -> (3, 4, 5); ``"4"`` -> (4,)."""
    low, _, high = text.partition("-")
    try:
        first, last = int(low), int(high or low)
    except ValueError:
        raise InputError(f"expected levels as FIRST-LAST, e.g. 3-5, got {text!r}") from None
    if not 0 <= first <= last:
        raise InputError(f"expected levels with the finest first, e.g. 3-5, got {text!r}")
    return tuple(range(first, last + 1))


def human(number: float) -> str:
    """1234567 -> ``"1.23 M"``."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.3g}"
