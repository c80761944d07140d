"""The command line: parse, call one library function, print.

Modules that need torch are imported inside the commands, so that `--help` and typing errors answer at once.
"""

from fpn_bench.cli.app import app, main

__all__ = ["app", "main"]
