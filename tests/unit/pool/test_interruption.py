"""The soft time limit interrupts an async body, and leaves an event loop that works."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from billiard.pool import soft_timeout_sighandler
from celery.exceptions import SoftTimeLimitExceeded
from kombu.utils.json import dumps

from celery_batches import Batches
from celery_batches.pool import async_body, interruption, trace
from celery_batches.pool.event_loops import loop_of_thread
from celery_batches.pool.interruption import Interruptible
from celery_batches.pool.soft_limit import SIGNAL, SoftLimit
from celery_batches.testing import run_batch
from kit.requests import make_request
from kit.tasks import make_task

assert SIGNAL is not None


@pytest.fixture(autouse=True)
def _process_of_a_pool() -> Iterator[None]:
    before = signal.signal(SIGNAL, soft_timeout_sighandler)
    yield
    # Whatever has come before, the next task of this process can be interrupted.
    with pytest.raises(SoftTimeLimitExceeded):
        strike()
    signal.signal(SIGNAL, before)


@pytest.fixture(autouse=True)
def _next_batch_runs(app: Any) -> Iterator[None]:
    """Whatever has come before, the loop runs another body."""
    yield

    async def body(requests: Any) -> str:
        await asyncio.sleep(0)
        return "ran"

    assert run_batch(make_task(app, body, name="unit.next"), [()]).returned == "ran"


def strike() -> None:
    signal.raise_signal(SIGNAL)


def strike_soon() -> None:
    """While the loop waits, or runs something else than the body."""
    asyncio.get_running_loop().call_soon(strike)


def run(task: Batches, prefix: str = "id") -> list[bool]:
    """Run a batch of two as the pool does; return which of its requests have failed."""
    requests = [make_request(task, f"{prefix}-{i}") for i in range(2)]
    _, reports, _ = trace.trace_batch(task.name, "batch-id", requests, "size", "w@h")
    return [failed for failed, _ in reports]


def error(app: Any, prefix: str = "id") -> Any:
    return app.AsyncResult(f"{prefix}-1").result


WHEN: dict[str, Callable[[], None]] = {"the body runs": strike, "the body waits": strike_soon}


@pytest.mark.parametrize("when", WHEN)
def test_the_body_is_interrupted(app: Any, when: str) -> None:
    """Its ``finally`` blocks run, also those that wait, and its marks count."""
    seen: list[str] = []

    async def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        try:
            WHEN[when]()
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            seen.append("finally")
        requests[1].mark_as_done(1)

    assert run(make_task(app, body)) == [False, True]
    assert type(error(app)) is SoftTimeLimitExceeded
    assert seen == ["finally"]


@pytest.mark.parametrize("when", WHEN)
def test_an_async_body_may_catch_it(app: Any, when: str) -> None:
    """As ``SoftTimeLimitExceeded``, wherever it strikes. Then the body waits for more."""

    async def body(requests: Any) -> None:
        try:
            WHEN[when]()
            await asyncio.sleep(600)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0)
            async with contextlib.AsyncExitStack():
                for request in requests:
                    request.mark_as_done("saved")

    assert run(make_task(app, body)) == [False, False]


def test_what_the_body_awaits_is_cancelled(app: Any) -> None:
    """All of it, as by any cancellation in asyncio."""
    seen: list[str] = []

    async def one(number: int) -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError as exc:
            seen.append(type(exc).__name__)
            raise

    async def body(requests: Any) -> None:
        asyncio.get_running_loop().call_later(0, strike)
        await asyncio.gather(*map(one, range(3)))

    assert run(make_task(app, body)) == [True, True]
    assert seen == ["CancelledError"] * 3


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 has the first task groups")
def test_a_task_group_in_the_body_ends(app: Any) -> None:
    """It cancels its tasks, and waits for them."""
    seen: list[str] = []

    async def one() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            seen.append("ended")

    async def body(requests: Any) -> None:
        async with asyncio.timeout(500), asyncio.TaskGroup() as group:
            group.create_task(one())
            group.create_task(one())
            asyncio.get_running_loop().call_later(0, strike)

    assert run(make_task(app, body)) == [True, True]
    assert type(error(app)) is SoftTimeLimitExceeded
    assert seen == ["ended"] * 2


def test_a_task_of_a_client_is_not_interrupted(app: Any) -> None:
    """If the limit strikes while another task runs, only the body ends."""
    kept: list[asyncio.Task[Any]] = []

    async def client() -> str:
        await asyncio.sleep(0)
        strike()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "works"

    async def body(requests: Any) -> Any:
        if not kept:
            kept.append(asyncio.create_task(client()))
            await asyncio.sleep(600)
        return await kept[0]

    task = make_task(app, body)
    assert run(task) == [True, True]
    assert run_batch(task, [()]).returned == "works"


def test_code_that_the_body_calls_is_interrupted(app: Any) -> None:
    """Code that does not await, however deep: a cancellation would come only after it."""
    seen: list[str] = []

    def blocks() -> None:
        strike()
        seen.append("not interrupted")

    async def deep() -> None:
        blocks()

    async def body(requests: Any) -> None:
        await deep()

    assert run(make_task(app, body)) == [True, True]
    assert seen == []


def test_a_body_that_marks_with_the_exception(app: Any) -> None:
    """What it has caught can be stored, pickled and shown as what it is."""
    caught: list[SoftTimeLimitExceeded] = []

    async def body(requests: Any) -> None:
        try:
            strike_soon()
            await asyncio.sleep(600)
        except SoftTimeLimitExceeded as exc:
            caught.append(exc)
            for request in requests:
                request.mark_as_failure(exc)

    assert run(make_task(app, body)) == [True, True]
    assert type(error(app)) is SoftTimeLimitExceeded
    assert repr(caught[0]) == repr(SoftTimeLimitExceeded())
    assert type(pickle.loads(pickle.dumps(caught[0]))) is SoftTimeLimitExceeded
    assert json.loads(dumps({"exc": repr(caught[0])}))


def test_the_limit_covers_all_halves(app: Any) -> None:
    """Of a body that is run again by ``bisect_on_failure``."""
    runs: list[int] = []

    async def body(requests: Any) -> None:
        runs.append(len(requests))
        if len(requests) == 1:
            strike_soon()
            await asyncio.sleep(600)
        raise KeyError

    assert run(make_task(app, body, bisect_on_failure=True)) == [True, True]
    assert type(error(app)) is SoftTimeLimitExceeded
    assert runs == [2, 1]


def test_a_limit_that_is_reached_as_the_body_ends(app: Any) -> None:
    """It covers the halves that have not run yet, which do not run."""
    runs: list[int] = []

    async def body(requests: Any) -> None:
        runs.append(len(requests))
        if len(requests) == 2:
            raise KeyError
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: strike())

    assert run(make_task(app, body, bisect_on_failure=True)) == [True, True]
    assert type(error(app)) is SoftTimeLimitExceeded
    assert runs == [2, 1]


def test_a_limit_that_is_reached_before_the_body_starts() -> None:
    """It does not run. Python 3.10 forgets which cancellation it was."""
    seen: list[str] = []

    async def body() -> None:
        seen.append("ran")

    interruptible = Interruptible(body())
    assert interruptible.strike(None)
    task = interruptible.start(loop_of_thread(), "unit.click")
    with pytest.raises((SoftTimeLimitExceeded, asyncio.CancelledError)):
        loop_of_thread().run_until_complete(task)
    assert seen == []


def test_a_body_is_interrupted_once(app: Any) -> None:
    """Also if something else has cancelled it at that moment. Then it may go on."""

    async def body(requests: Any) -> None:
        task = asyncio.current_task()
        assert task is not None

        def both(task: asyncio.Task[Any] = task) -> None:
            task.cancel()
            strike()

        asyncio.get_running_loop().call_soon(both)
        try:
            await asyncio.sleep(600)
        except SoftTimeLimitExceeded:
            for _ in range(3):
                await asyncio.sleep(0)
            for request in requests:
                request.mark_as_done("saved")

    assert run(make_task(app, body)) == [False, False]


def test_an_eager_call_in_an_ordinary_task(app: Any) -> None:
    """The limit is then that of the ordinary task, and its exception that of the call."""

    async def body(requests: Any) -> None:
        strike_soon()
        await asyncio.sleep(600)

    result = make_task(app, body).apply()
    assert type(result.result) is SoftTimeLimitExceeded


def test_an_interruption_that_is_no_limit(app: Any) -> None:
    """Whatever is raised in the loop: the body is cancelled, and its ``finally`` blocks run."""
    seen: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def body(requests: Any) -> None:
        try:
            asyncio.get_running_loop().call_soon(interrupt)
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            seen.append("finally")

    with pytest.raises(KeyboardInterrupt):
        run_batch(make_task(app, body), [()])
    assert seen == ["finally"]


class Striking:
    """Has the signal handled before one instruction of this package, or line of asyncio.

    Python handles a signal between two instructions. It counts them.
    """

    FILES = (async_body.__file__, interruption.__file__, asyncio.base_events.__file__)
    #: Before these have ended there is no task: the limit ends them, as it does a plain body.
    BEFORE = ("run", "run_awaitable", "_check_thread", "has_running_loop")

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.is_handling = False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self.FILES or frame.f_code.co_name in self.BEFORE:
            return None
        is_ours = frame.f_code.co_filename != asyncio.base_events.__file__
        frame.f_trace_opcodes = is_ours
        is_entered = SoftLimit._running is not None and not SoftLimit._running._has_ended
        if is_entered and not self.is_handling and event == ("opcode" if is_ours else "line"):
            self.count += 1
            if self.count == self.at:
                self.is_handling = True
                SoftLimit._on_signal(int(SIGNAL), frame)
        return self

    def run(self, function: Callable[[], Any]) -> Any:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return function()
        finally:
            sys.settrace(before)


def test_no_moment_leaves_a_loop_that_does_not_work(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever instruction it strikes before: the batch ends, and so does its coroutine."""
    seen: list[str] = []

    async def body(requests: Any) -> None:
        try:
            await asyncio.sleep(0)
            for request in requests:
                request.mark_as_done()
        except GeneratorExit:
            seen.append("left alone")
            raise

    task = make_task(app, body)
    loop_of_thread()
    striking = Striking(0)
    assert striking.run(lambda: run(task)) == [False, False]
    total = striking.count
    assert total > 100
    caplog.set_level(logging.CRITICAL, logger="celery_batches")
    for at in range(1, total + 1):
        failed = Striking(at).run(lambda at=at: run(task, f"{at}"))
        assert failed in ([True, True], [False, False]), at
        if failed[1]:
            assert type(error(app, f"{at}")) is SoftTimeLimitExceeded, at
        assert asyncio.all_tasks(loop_of_thread()) == set(), at
        assert seen == [], at
