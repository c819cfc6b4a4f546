"""Runs an async body on the event loop of its thread. Runs in the pool."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger
from kombu.utils.compat import detect_environment

from ..definition import has_async_body
from .event_loops import loop_of_thread
from .interruption import Interruptible
from .soft_limit import SoftLimit

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("check_eager", "has_running_loop", "run_awaitable", "synchronous")

logger = get_logger(__name__)

#: The attribute of a task that has logged `LOG_LEFT` in this process.
HAS_LOGGED = "__has_logged_left_tasks__"

LOG_LEFT = (
    "Task %s: the body has ended before %d asyncio tasks that it has started, such as %r. They go "
    "on only while a later batch runs in this process or thread, and are cancelled at its end. "
    "Await them in the body, for example in asyncio.gather(). If they belong to a client that you "
    "keep open, nothing has to be done. This is logged once for each task and process"
)


def synchronous(task: Batches, body: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs an async body to its end, and returns its result.

    Wrappers of the body, such as that of ``autoretry_for``, see its exceptions therefore. In a
    thread whose event loop runs, the function returns the coroutine, for ``await task.run(...)``.
    """

    @wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        returned = body(*args, **kwargs)
        if not isawaitable(returned) or has_running_loop():
            return returned
        return run_awaitable(task, returned)

    return run


def check_eager(task: Batches) -> None:
    """Refuse to run an async body in a thread whose event loop is running.

    Raises:
        RuntimeError: If an event loop is running.
    """
    if has_async_body(type(task)):
        _check_thread(task)


def has_running_loop() -> bool:
    """Whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_awaitable(task: Batches, awaitable: Awaitable[Any]) -> Any:
    """Run an awaitable of the body on the event loop of this thread, and return its result.

    Arguments:
        task: The batch task.
        awaitable: What the body has returned, such as a coroutine.

    Raises:
        Exception: What the awaitable raises.
        RuntimeError: If the awaitable was cancelled, an event loop is running in this thread, or
            the thread is shared by greenlets.
        celery.exceptions.SoftTimeLimitExceeded: If the soft time limit has interrupted it.
    """
    coroutine = awaitable if iscoroutine(awaitable) else _await(awaitable)
    try:
        _check_thread(task)
        return _run(task, loop_of_thread(), Interruptible(coroutine))
    finally:
        # It has not started if an error or the limit was first.
        coroutine.close()


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _check_thread(task: Batches) -> None:
    if has_running_loop():
        raise RuntimeError(
            f"Task {task.name!r}: its body is async, and an event loop is running in this thread "
            f"already. Use another thread, for example by "
            f"await asyncio.to_thread({type(task).__name__}.apply, args)"
        )
    if (environment := detect_environment()) != "default":
        raise RuntimeError(
            f"Task {task.name!r}: its body is async, and the greenlets of {environment} share one "
            f"thread, in which only one event loop can run. Use another pool, such as threads"
        )


def _run(task: Batches, loop: asyncio.AbstractEventLoop, body: Interruptible) -> Any:
    before = asyncio.all_tasks(loop)
    running: asyncio.Task[Any] | None = None
    try:
        with SoftLimit.handing_to(body.strike):
            running = body.start(loop, task.name)
            returned = loop.run_until_complete(running)
    except BaseException as exc:
        if running is not None:
            _end(loop, running)
        if not isinstance(exc, asyncio.CancelledError):
            raise
        if body.has_struck:
            raise SoftTimeLimitExceeded().with_traceback(exc.__traceback__) from None
        raise RuntimeError(f"Task {task.name!r}: its body was cancelled: {exc!r}") from exc
    finally:
        _warn_of_left_tasks(task, asyncio.all_tasks(loop) - before)
    if body.has_struck and not body.is_told:
        raise SoftTimeLimitExceeded
    return returned


def _end(loop: asyncio.AbstractEventLoop, running: asyncio.Task[Any]) -> None:
    """Leave the loop as the next batch needs it, after an exception.

    If the exception is not that of the body, but that of a signal, the body goes on. It is
    cancelled.
    """
    running.cancel()
    running.add_done_callback(lambda _: loop.stop())
    while not running.done():
        loop.run_forever()
    # What has asked the loop to stop until now must not stop it in the next batch.
    loop.call_soon(loop.stop)
    loop.run_forever()


def _warn_of_left_tasks(task: Batches, left: set[asyncio.Task[Any]]) -> None:
    if left and not task.__dict__.get(HAS_LOGGED):
        task.__dict__[HAS_LOGGED] = True
        logger.warning(LOG_LEFT, task.name, len(left), next(iter(left)))
