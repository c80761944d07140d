"""Passwords taken out of what is written or shown: commands, messages, metadata.

A storage URL carries its password in the open (``postgresql://me:secret@host/db``) or in its query
(``?password=secret``). Whatever may hold such a URL goes through here before it reaches a file, a page or a terminal.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"


def _patterns(any_char: str, value_char: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    # "://", a user, ":", the password up to the last "@": people type an "@" or a "/" of their password as it is.
    authority = rf"(://[^\s:/?#]*):{any_char}*@"
    # `password=`, `sslpassword=`, `PWD%3D`: whatever separates values may be percent-encoded, as in odbc_connect.
    key = r"(?:password|passwd|passphrase|passcode|pwd|secret)\w*|(?<=[?&;])\w*token"
    query = rf"((?:{key})(?:=|%3D))(?:(?!&|;|%3B){value_char})+"
    flags = re.IGNORECASE | re.DOTALL
    return (re.compile(authority, flags), rf"\1:{HIDDEN}@"), (re.compile(query, flags), rf"\1{HIDDEN}")


_IN_TEXT = _patterns(r"\S", r"[^\s'\"]")
_IN_WORD = _patterns(".", ".")


def redact_text(text: str) -> str:
    """Prose or a message, with `HIDDEN` in place of the password of each URL."""
    if "://" not in text and "=" not in text and "%3" not in text:
        return text  # nearly every text, and tables have many
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def redact_word(word: str) -> str:
    """One argument of a command, or one URL: as `redact_text`, but its password may hold blanks and quotes."""
    for pattern, replacement in _IN_WORD:
        word = pattern.sub(replacement, word)
    return word


def shell_command(words: Sequence[str]) -> str:
    """A command as it could be typed again, without passwords."""
    return shlex.join(map(redact_word, words))


def redact_command(text: str) -> str:
    """A command that was written down, without passwords; as it was written where it has none."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is never closed
        return redact_text(text)
    return text if all(redact_word(word) == word for word in words) else shell_command(words)


def redact(value: Any, *, key: object = None) -> Any:
    """Plain data as JSON has it, with every text in it redacted; what stands under ``commands`` as commands."""
    if isinstance(value, str):
        return redact_command(value) if key == "commands" else redact_text(value)
    if isinstance(value, Mapping):
        return {name: redact(inner, key=name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact(inner, key=key) for inner in value)
    return value
