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
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from operator import length_hint
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, ClassVar, TypeAlias, TypeVar

__all__ = ("SoftLimit",)

T = TypeVar("T")

#: Takes the frame that Python runs, and returns whether it interrupts the body itself.
Strike: TypeAlias = "Callable[[FrameType | None], bool]"

#: The signal of the soft limit. Windows has none, and no soft limits either.
SIGNAL = getattr(signal, "SIGUSR1", None)


class SoftLimit:
    """Lets the soft time limit interrupt the body of one batch, and nothing after it.

    The first batch of a process puts a handler before billiard's, where it stays: to replace a
    handler takes longer than to ask one. While no batch is entered, it does what billiard's does.
    In other pools, in other threads, and where something else handles the signal, nothing is done.
    """

    #: The batch that is entered in the main thread of this process.
    _running: ClassVar[SoftLimit | None] = None
    #: Billiard's handler.
    _interrupt: ClassVar[Callable[[int, FrameType | None], Any] | None] = None
    #: What interrupts the event loop that runs a body.
    _strike: ClassVar[Strike | None] = None

    def __init__(self) -> None:
        self._has_ended = False
        #: The arguments of the body. The call takes them out when it starts.
        self._arguments: Iterator[tuple[Any, ...]] = iter(())

    def __enter__(self) -> SoftLimit:
        # A batch in the body of another one is part of that body.
        if SoftLimit._running is None and current_thread() is main_thread():
            self._install()
            SoftLimit._running = self
        return self

    def __exit__(self, kind: object, exc: object, traceback: TracebackType | None) -> None:
        if SoftLimit._running is self:
            SoftLimit._running = None

    @classmethod
    def _install(cls) -> None:
        if SIGNAL is None:
            return
        handler = signal.getsignal(SIGNAL)
        if callable(handler) and getattr(handler, "__module__", None) == "billiard.pool":
            cls._interrupt = handler
            signal.signal(SIGNAL, cls._on_signal)

    @classmethod
    def _on_signal(cls, signum: int, frame: FrameType | None) -> None:
        running = cls._running
        is_over = running is not None and running.is_over(frame)
        if cls._interrupt is None or is_over:
            return
        if cls._strike is None or not cls._strike(frame):
            cls._interrupt(signum, frame)

    @classmethod
    @contextmanager
    def handing_to(cls, strike: Strike) -> Iterator[None]:
        """Ask this function first when the limit is reached in the main thread.

        Arguments:
            strike: Returns False if the exception is to be raised in what runs.
        """
        if current_thread() is not main_thread():
            yield
            return
        # A body may also be called in an ordinary task, which enters no batch.
        cls._install()
        outer, cls._strike = cls._strike, strike
        try:
            yield
        finally:
            cls._strike = outer

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

    def is_over(self, frame: FrameType | None) -> bool:
        """Whether the body has ended, while Python runs this frame.

        While the body runs, the frame is that of the body, or of what it calls. If it is that of
        `call`, the body has not started, or has ended.
        """
        if self._has_ended:
            return True
        if frame is None or frame.f_code is not SoftLimit.call.__code__:
            return False
        is_mine = frame.f_locals.get("self") is self
        return is_mine and length_hint(self._arguments) == 0
