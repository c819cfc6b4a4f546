"""Keeps the soft time limit from interrupting what follows the body. Runs in the pool.

In a pool of processes, the soft limit is a signal. Its handler, which is billiard's, raises an
exception in whatever the process does. In the body, that is what the limit is for. After the body,
it would fail a request that happens to be told of its outcome, and leave half of that undone.

The body runs inside of one call of a function that is written in C. Python handles signals between
its own instructions only. So the body runs exactly while this call does, and there is no moment
between the end of the body and a note that it has ended.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import starmap
from operator import length_hint
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, TypeVar

__all__ = ("SoftLimit",)

T = TypeVar("T")

#: The signal of the soft limit. Windows has none, and no soft limits either.
SIGNAL = getattr(signal, "SIGUSR1", None)


class SoftLimit:
    """Lets the soft time limit interrupt the body of one batch, and nothing after it.

    It replaces billiard's signal handler as long as it is entered. In other pools, in other
    threads, and where something else handles the signal, it does nothing.
    """

    def __init__(self) -> None:
        self._has_ended = False
        #: The arguments of the body. The call takes them out when it starts.
        self._arguments: Iterator[tuple[Any, ...]] = iter(())
        self._interrupt: Callable[[int, FrameType | None], Any] | None = None

    def __enter__(self) -> SoftLimit:
        if SIGNAL is None or current_thread() is not main_thread():
            return self
        handler = signal.getsignal(SIGNAL)
        if callable(handler) and getattr(handler, "__module__", None) == "billiard.pool":
            self._interrupt = handler
            signal.signal(SIGNAL, self._on_signal)
        return self

    def __exit__(self, kind: object, exc: object, traceback: TracebackType | None) -> None:
        # The body may have a handler of its own by now, which stays, as in an ordinary task.
        if SIGNAL is None or self._interrupt is None:
            return
        if signal.getsignal(SIGNAL) == self._on_signal:
            signal.signal(SIGNAL, self._interrupt)

    def call(self, body: Callable[..., T], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> T:
        """Call the body. When it has returned or raised, the limit interrupts nothing."""
        self._arguments = iter((args,))
        try:
            return next(starmap(partial(body, **kwargs), self._arguments))
        finally:
            self._has_ended = True

    def end(self) -> None:
        """Have the limit interrupt nothing from now on."""
        self._has_ended = True

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._interrupt is not None and not (self._has_ended or self._is_leaving(frame)):
            self._interrupt(signum, frame)

    def _is_leaving(self, frame: FrameType | None) -> bool:
        """Whether this frame is that of `call`, and the body has ended.

        While the body runs, the frame is that of the body, or of what it calls.
        """
        if frame is None or frame.f_code is not SoftLimit.call.__code__:
            return False
        is_mine = frame.f_locals.get("self") is self
        return is_mine and length_hint(self._arguments) == 0
