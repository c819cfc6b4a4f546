"""One event loop for each thread: kept, closed at the end, and never that of another process."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from celery import signals

from celery_batches.pool import event_loops
from celery_batches.pool.event_loops import close_loops, loop_of_thread
from celery_batches.testing import run_batch
from kit.log import messages
from kit.tasks import make_task


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    close_loops()
    yield
    close_loops()


def in_thread() -> asyncio.AbstractEventLoop:
    """The loop of a thread that has ended."""
    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: loops.append(loop_of_thread()))
    thread.start()
    thread.join(30)
    return loops[0]


def test_a_thread_has_one_loop() -> None:
    """Which is not that of another thread."""
    loop = loop_of_thread()
    assert loop_of_thread() is loop
    assert in_thread() is not loop
    assert not loop.is_closed()


def test_a_loop_that_the_body_has_closed_is_replaced() -> None:
    """So that the next batch can run."""
    loop = loop_of_thread()
    loop.close()
    assert not loop_of_thread().is_closed()


def test_the_policy_makes_the_loop() -> None:
    """As `uvloop` has it."""

    class Loop(asyncio.SelectorEventLoop):
        pass

    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            return Loop()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(Policy())
        try:
            assert isinstance(loop_of_thread(), Loop)
        finally:
            asyncio.set_event_loop_policy(None)


def test_the_loop_is_not_the_current_one_outside_of_bodies(app: Any) -> None:
    """The current loop of a thread belongs to the program that runs a task eagerly."""
    own = asyncio.new_event_loop()

    async def body(requests: Any) -> None:
        assert asyncio.get_running_loop() is asyncio.get_event_loop() is not own

    try:
        asyncio.set_event_loop(own)
        batch = run_batch(make_task(app, body), [()])
        assert batch.exception is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            assert asyncio.get_event_loop() is own
    finally:
        asyncio.set_event_loop(None)
        own.close()


def test_a_loop_installs_no_signal_handlers(app: Any) -> None:
    """Those of Celery stay, while the body runs and after it."""
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD)
    before = [signal.getsignal(each) for each in known]

    async def body(requests: Any) -> None:
        await asyncio.sleep(0)
        assert [signal.getsignal(each) for each in known] == before

    assert run_batch(make_task(app, body), [()]).exception is None
    assert [signal.getsignal(each) for each in known] == before


ENDS = {
    "a process of prefork": lambda: signals.worker_process_shutdown.send(
        sender="w@h", pid=1, exitcode=0
    ),
    "a worker": lambda: signals.worker_shutdown.send(sender=None),
    "the interpreter": close_loops,
}


@pytest.mark.parametrize("end", ENDS)
def test_the_end_cancels_what_is_left_and_closes_the_loop(app: Any, end: str) -> None:
    """Clients that were kept are closed: tasks and asynchronous generators end in good order."""
    kept: list[Any] = []
    seen: list[str] = []

    async def client() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            seen.append("task")

    async def stream() -> Any:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            seen.append("generator")

    async def body(requests: Any) -> None:
        kept.append(asyncio.create_task(client()))
        kept.append(stream())
        await kept[-1].__anext__()

    run_batch(make_task(app, body), [()])
    loop = loop_of_thread()
    assert not loop.is_closed()
    ENDS[end]()
    assert loop.is_closed()
    assert seen == ["task", "generator"]
    # An embedded worker may start again.
    assert not loop_of_thread().is_closed()


def test_the_interpreter_closes_its_loops() -> None:
    """Without a worker no signal says so."""
    code = (
        "from celery_batches.pool.event_loops import loop_of_thread; import asyncio\n"
        "async def client():\n"
        "    try: await asyncio.sleep(600)\n"
        "    finally: print('closed')\n"
        "async def body(): tasks.append(asyncio.create_task(client())); await asyncio.sleep(0)\n"
        "tasks = []\n"
        "loop_of_thread().run_until_complete(body())\n"
    )
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("closed\n", "")


@pytest.mark.parametrize("when", ["another loop is made", "the worker ends"])
def test_loops_of_threads_that_have_ended_are_closed(when: str) -> None:
    """That of a thread which goes on is left alone, since it may be running."""
    go, ready = threading.Event(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    def run() -> None:
        loops.append(loop_of_thread())
        ready.set()
        go.wait(30)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    ended = in_thread()
    assert not ended.is_closed()
    if when == "another loop is made":
        loop_of_thread()
    else:
        signals.worker_shutdown.send(sender=None)
    assert ended.is_closed()
    assert not loops[0].is_closed()
    go.set()
    thread.join(30)
    close_loops()
    assert loops[0].is_closed()


def test_a_task_that_does_not_end_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not keep the process from ending."""
    monkeypatch.setattr(event_loops, "CLOSE_TIMEOUT", 0)
    loop = loop_of_thread()
    tasks: list[asyncio.Task[Any]] = []

    async def stubborn() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                await asyncio.sleep(0)

    async def body() -> None:
        tasks.append(asyncio.create_task(stubborn()))
        await asyncio.sleep(0)

    loop.run_until_complete(body())
    close_loops()
    assert loop.is_closed()
    (line,) = messages(caplog, logging.ERROR)
    assert line.startswith("1 asyncio tasks have not ended 0 seconds after they were cancelled")
    assert "stubborn" in line
    # So that Python does not say so once more.
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_task_that_raises_at_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The others end as they would."""
    loop = loop_of_thread()
    tasks: list[asyncio.Task[Any]] = []

    async def fails() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            raise KeyError("at the end")

    async def body() -> None:
        tasks.extend(asyncio.create_task(coroutine) for coroutine in (fails(), asyncio.sleep(600)))
        await asyncio.sleep(0)

    loop.run_until_complete(body())
    close_loops()
    (line,) = messages(caplog, logging.ERROR)
    assert "raised KeyError('at the end') when it was cancelled" in line
    assert tasks[1].cancelled()


FORK = """
import asyncio, os, threading
from celery_batches.pool.event_loops import close_loops, loop_of_thread
loop = loop_of_thread()
thread = threading.Thread(target=lambda: others.append(loop_of_thread()))
others = []
thread.start(); thread.join()
child = os.fork()
if not child:
    assert loop_of_thread() is not loop
    loop_of_thread().run_until_complete(asyncio.sleep(0))
    close_loops()
    assert not loop.is_closed() and not others[0].is_closed()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
async def woken():
    # A loop whose descriptors the child has taken out of the selector is never woken up.
    return await asyncio.wait_for(asyncio.to_thread(str, "woken"), 20)
assert loop_of_thread() is loop
print(loop.run_until_complete(woken()))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="Windows has no fork")
def test_a_process_that_was_forked_has_loops_of_its_own() -> None:
    """It neither runs nor closes those of its parent, whose selectors it shares."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("woken\n", "")
