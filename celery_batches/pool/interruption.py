"""Has the soft time limit interrupt a coroutine that an event loop runs. Runs in the pool.

The soft limit is a signal, whose handler raises an exception in whatever the process does. Raised
in an event loop, it would end whichever callback happens to run, and leave the body waiting. So
the exception is raised only while code of the body runs. Otherwise, the loop cancels the body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from inspect import CO_COROUTINE
from types import FrameType, TracebackType
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

__all__ = ("Interruptible",)


class _SoftLimitCancelled(asyncio.CancelledError, SoftTimeLimitExceeded):  # type: ignore[misc]
    """What a body gets that waits for something when the limit is reached.

    ``asyncio`` knows it as a cancellation: task groups and timeouts in the body cancel what they
    have started. A body catches it as ``SoftTimeLimitExceeded``, as any body does. A result backend
    stores it as such too.
    """

    __module__ = SoftTimeLimitExceeded.__module__

    def __reduce__(self) -> tuple[Any, ...]:
        return SoftTimeLimitExceeded, self.args


_SoftLimitCancelled.__name__ = _SoftLimitCancelled.__qualname__ = SoftTimeLimitExceeded.__name__


class Interruptible(Coroutine[Any, Any, Any]):
    """Runs a coroutine, and interrupts it with ``SoftTimeLimitExceeded``."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[Any] | None = None
        #: Whether the limit was reached.
        self.has_struck = False
        #: Whether the coroutine has got the exception.
        self.is_told = False
        # For the representation of its task.
        self.__name__ = self.__qualname__ = getattr(coroutine, "__qualname__", "body")

    def start(self, loop: asyncio.AbstractEventLoop, name: str) -> asyncio.Task[Any]:
        """Make a task of this loop that runs the coroutine."""
        self._task = task = loop.create_task(self, name=name)
        if self.has_struck:
            task.cancel()
        return task

    def strike(self, frame: FrameType | None) -> bool:
        """Interrupt the coroutine. The handler of the signal calls it.

        Arguments:
            frame: What Python runs.

        Returns:
            False if the handler is to raise the exception, because code of the coroutine runs.
        """
        if self._is_running(frame):
            return False
        self.has_struck = True
        task = self._task
        if task is not None:
            # It wakes up a loop that waits. Unlike `Task.cancel`, it may be called at any moment.
            task.get_loop().call_soon_threadsafe(self._cancel, task)
        return True

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if not self.is_told:
            task.cancel()

    @staticmethod
    def _is_running(frame: FrameType | None) -> bool:
        """Whether this frame is that of the coroutine, or of something that it has called.

        Between its own code and that of the coroutine, the task or the loop may be amid a change
        of its state.
        """
        is_coroutine = False
        while frame is not None:
            if frame.f_code in (Interruptible.send.__code__, Interruptible.throw.__code__):
                return is_coroutine
            is_coroutine = is_coroutine or bool(frame.f_code.co_flags & CO_COROUTINE)
            frame = frame.f_back
        return False

    def send(self, value: Any) -> Any:
        """Run the coroutine until it waits."""
        return self._coroutine.send(value)

    def throw(self, kind: Any, value: Any = None, traceback: TracebackType | None = None) -> Any:
        """Raise an exception where the coroutine waits."""
        exc = value if isinstance(value, BaseException) else kind
        if isinstance(exc, type):
            exc = exc() if value is None else exc(value)
        if self.has_struck and not self.is_told and isinstance(exc, asyncio.CancelledError):
            self.is_told = True
            exc = _SoftLimitCancelled()
        elif traceback is not None:
            exc = exc.with_traceback(traceback)
        return self._coroutine.throw(exc)

    def close(self) -> None:
        """End a coroutine that has not ended."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()
