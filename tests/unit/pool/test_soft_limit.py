"""The soft time limit interrupts the body, and nothing after it, at whatever moment it strikes."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from billiard.pool import soft_timeout_sighandler
from celery.exceptions import SoftTimeLimitExceeded

from celery_batches import Batches
from celery_batches.pool import run as pool_run
from celery_batches.pool import soft_limit, trace
from celery_batches.pool.soft_limit import SIGNAL, SoftLimit
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


def strike() -> None:
    signal.raise_signal(SIGNAL)


def run(task: Batches, count: int = 2) -> list[bool]:
    """Run a batch as the pool does; return which of its requests have failed."""
    requests = [make_request(task, f"id-{i}") for i in range(count)]
    _, reports, _ = trace.trace_batch(task.name, "batch-id", requests, "size", "w@h")
    return [failed for failed, _ in reports]


def states(app: Any) -> list[str]:
    return [app.AsyncResult(f"id-{i}").state for i in range(2)]


def test_the_body_is_interrupted(app: Any) -> None:
    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        strike()
        requests[1].mark_as_done(1)

    assert run(make_task(app, body)) == [False, True]
    assert isinstance(app.AsyncResult("id-1").result, SoftTimeLimitExceeded)


def test_a_body_may_catch_it(app: Any) -> None:
    def body(requests: Any) -> None:
        try:
            strike()
        except SoftTimeLimitExceeded:
            for request in requests:
                request.mark_as_done("saved")

    assert run(make_task(app, body)) == [False, False]


@pytest.mark.parametrize("raises", [False, True])
def test_handlers_are_not_interrupted(app: Any, raises: bool) -> None:
    class Struck(Batches):
        def on_success(self, *args: Any) -> None:
            strike()

        on_failure = after_return = on_success

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        if raises:
            raise KeyError("the body's")
        requests[1].mark_as_done(1)

    assert run(make_task(app, body, base=Struck)) == [False, raises]
    assert states(app) == ["SUCCESS", "FAILURE" if raises else "SUCCESS"]
    if raises:
        assert isinstance(app.AsyncResult("id-1").result, KeyError)


def test_a_body_that_is_not_called_interrupts_nothing(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them has failed before the body, by its own handler."""

    class Refused(Batches):
        def before_start(self, *args: Any) -> None:
            raise ValueError

        def on_failure(self, *args: Any) -> None:
            strike()

    assert run(make_task(app, base=Refused)) == [True, True]
    assert isinstance(app.AsyncResult("id-1").result, ValueError)
    assert "SoftTimeLimitExceeded" not in caplog.text


def test_the_next_task_can_be_interrupted_when_the_settlement_raises(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture looks for that."""

    def broken(self: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(trace.BatchRun, "_apply_outcomes", broken)
    with pytest.raises(SystemExit):
        run(make_task(app))


def test_a_handler_of_the_body_stays(app: Any) -> None:
    def body(requests: Any) -> None:
        signal.signal(SIGNAL, signal.SIG_IGN)

    run(make_task(app, body))
    assert signal.getsignal(SIGNAL) is signal.SIG_IGN
    signal.signal(SIGNAL, soft_timeout_sighandler)


def test_whatever_else_handles_the_signal_is_left_alone() -> None:
    """The main process of a worker writes a stack trace for this signal."""
    signal.signal(SIGNAL, signal.SIG_IGN)
    with SoftLimit():
        assert signal.getsignal(SIGNAL) is signal.SIG_IGN
    signal.signal(SIGNAL, soft_timeout_sighandler)


def test_a_batch_within_the_body_of_a_batch_is_part_of_that_body() -> None:
    with SoftLimit() as outer:

        def body() -> None:
            with SoftLimit() as inner:
                inner.call(int, (), {})
                strike()

        with pytest.raises(SoftTimeLimitExceeded):
            outer.call(body, (), {})


def test_other_threads_do_nothing_with_signals() -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with SoftLimit() as limit:
                assert limit.call(lambda x, *, y: x + y, (1,), {"y": 2}) == 3
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(30)
    assert errors == []


class Striking:
    """Has the signal handled before one instruction of this package's pool, and counts them.

    Python handles a signal between two instructions. Here, it does so before the instruction of
    that number, of those that follow the last instruction of the body.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.has_ended = False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in (soft_limit.__file__, pool_run.__file__):
            return None
        frame.f_trace_opcodes = True
        if frame.f_code.co_name.startswith(("_on_signal", "is_over")):
            return None
        # Before and after that, it is as in an ordinary task.
        is_entered = SoftLimit._running is not None
        if is_entered and self.has_ended and event in ("opcode", "line"):
            self.count += 1
            if self.count == self.at:
                SoftLimit._on_signal(int(SIGNAL), frame)
        return self

    def run(self, function: Callable[[], Any]) -> Any:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return function()
        finally:
            sys.settrace(before)


@pytest.mark.parametrize("raises", [False, True])
def test_no_moment_after_the_body_is_in_its_time(app: Any, raises: bool) -> None:
    """Whichever instruction it strikes before, each request ends as the body has left it."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        striking.has_ended = True
        if raises:
            raise KeyError("the body's")

    task = make_task(app, body)
    within: Callable[[], Any] = lambda: run(task)  # noqa: E731
    striking = Striking(0)
    assert striking.run(within) == [False, raises]
    total = striking.count
    assert total > 50
    for at in range(1, total + 1):
        striking = Striking(at)
        assert striking.run(within) == [False, raises], at
        if raises:
            assert isinstance(app.AsyncResult("id-1").result, KeyError), at
