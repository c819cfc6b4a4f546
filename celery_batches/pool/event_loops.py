"""Keeps one asyncio event loop for each thread that runs async bodies. Runs in the pool.

A loop stays open from batch to batch, so that a client that was opened in one batch can be used in
the next. It runs only while a body runs. No signal handlers are installed.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from dataclasses import dataclass
from typing import Any

from celery import signals
from celery.utils.log import get_logger

__all__ = ("close_loops", "loop_of_thread")

logger = get_logger(__name__)

#: The seconds that cancelled tasks have to end before their loop is closed.
CLOSE_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A loop and its owner. A process that was forked has copies of those of its parent."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    pid: int

    @property
    def is_ownerless(self) -> bool:
        """Whether the loop is of this process, and of this thread or one that has ended."""
        if self.pid != os.getpid() or self.loop.is_running():
            return False
        return self.thread is threading.current_thread() or not self.thread.is_alive()


_of_thread = threading.local()
#: All loops that are open. Those of a parent process stay here: to close one would take the file
#: descriptors out of the selector that both processes share.
_kept: dict[int, _Kept] = {}


def loop_of_thread() -> asyncio.AbstractEventLoop:
    """Return the event loop of this thread, and make one if there is none.

    The policy of the process makes it, so that uvloop's policy applies.
    """
    kept: _Kept | None = getattr(_of_thread, "kept", None)
    if kept is None or kept.pid != os.getpid() or kept.loop.is_closed():
        # No hook tells of the end of a thread. So loops of threads that have ended go now.
        close_loops()
        kept = _Kept(asyncio.new_event_loop(), threading.current_thread(), os.getpid())
        _of_thread.kept = _kept[id(kept)] = kept
    return kept.loop


def close_loops(**_: Any) -> None:
    """Close the loop of this thread, and those of threads that have ended.

    The tasks of a loop are cancelled, and its asynchronous generators are shut down.

    Arguments:
        **_: The arguments of Celery's signals, which are not used.
    """
    for key, kept in list(_kept.items()):
        # `pop`, since another thread may do the same.
        if kept.is_ownerless and _kept.pop(key, None) is not None:
            _close(kept.loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    if loop.is_closed():
        return
    try:
        loop.run_until_complete(_end_tasks(loop))
        loop.run_until_complete(loop.shutdown_asyncgens())
    except Exception as exc:
        logger.error("Cannot end what runs on the event loop: %r", exc, exc_info=True)
    finally:
        loop.close()


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if not tasks:
        return
    ended, pending = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
    for task in ended:
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("%r raised %r when it was cancelled", task, exc, exc_info=exc)
    if pending:
        first = next(iter(pending))
        logger.error(
            "%d asyncio tasks have not ended %s seconds after they were cancelled, such as %r",
            len(pending),
            CLOSE_TIMEOUT,
            first,
        )


# A process of prefork ends with the one signal. A worker with another pool ends with the other,
# when the threads of its pool have ended.
signals.worker_process_shutdown.connect(close_loops, weak=False)
signals.worker_shutdown.connect(close_loops, weak=False)
atexit.register(close_loops)
