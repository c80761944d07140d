"""Ctrl-C, SIGTERM and the end of a trial's time take effect only where `Interrupts.allowed` says so; elsewhere they
wait, so that no row is cut in two.

The time of a trial is kept by a thread, because not every system has an alarm signal.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class TrialTimeout(BaseException):
    """A step of a trial took longer than the budget allows.

    As little an `Exception` as KeyboardInterrupt is: code that outlasts what a candidate raises must not take it for
    something of its own.
    """


class Interrupts:
    """See the module. A context; does nothing outside the main thread, where signals cannot be handled.

    Attributes:
        pending: the process was asked to stop.
    """

    def __init__(self) -> None:
        """See the class."""
        self.pending = False
        self._allowed = False
        self._minutes: float | None = None
        self._time_is_up = False
        self._before: dict[signal.Signals, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def allowed(self, minutes: float | None = None) -> Iterator[None]:
        """Here alone, and for at most so many minutes.

        Raises:
            KeyboardInterrupt: the process was, or is, asked to stop.
            TrialTimeout: the minutes are over.
        """
        if self.pending:
            raise KeyboardInterrupt
        timer = None
        if minutes is not None and self._before:
            timer = threading.Timer(60 * minutes, self._interrupt_main_thread)
            timer.daemon = True
        self._allowed, self._minutes, self._time_is_up = True, minutes, False
        try:
            if timer is not None:
                timer.start()
            yield
        finally:
            self._allowed = False
            if timer is not None:
                timer.cancel()
                with self._lock:  # a signal that it is about to send arrives here, where it means nothing
                    pass

    def _interrupt_main_thread(self) -> None:
        with self._lock:
            if not self._allowed:
                return
            self._time_is_up = True
            if hasattr(signal, "pthread_kill"):  # also wakes a main thread that sleeps in the system
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, signal.SIGINT)
            else:
                _thread.interrupt_main()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._time_is_up and number == signal.SIGINT:
            self._time_is_up = False
            if self._allowed:
                raise TrialTimeout(f"timed out after {self._minutes:g} minutes")
            return
        self.pending = True
        if self._allowed:
            raise KeyboardInterrupt
