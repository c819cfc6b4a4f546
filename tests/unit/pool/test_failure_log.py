"""A request that fails by an exception of its own has a line in the log, and a signal."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from celery import signals
from celery.exceptions import Ignore, Reject, Retry

from celery_batches import Batches
from celery_batches.pool.trace import trace_batch
from celery_batches.pool.tracer import run_in_tracer
from celery_batches.testing import run_batch
from kit.log import messages
from kit.tracing import World, mark_failed

LINE = "Task unit.click[id-1] raised unexpected: ValueError('bad')"


def mark(world: World, requests: Any) -> None:
    requests[1].mark_as_failure(ValueError("bad"))


def mark_at_once(world: World, requests: Any) -> None:
    mark_failed(world, "idiom", requests[1], ValueError("bad"))


def return_it(world: World, requests: Any) -> Any:
    return [1, ValueError("bad"), 3]


def raise_for_it(world: World, requests: Any) -> Any:
    if any(request.id == "id-1" for request in requests):
        raise ValueError("bad")
    return [None] * len(requests)


def retry_it(world: World, requests: Any) -> None:
    requests[1].retry(exc=ValueError("bad"), max_retries=0)


#: The body, and the options of its task.
WAYS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "marked": (mark, {}),
    "marked at once": (mark_at_once, {}),
    "returned": (return_it, {"return_results": True}),
    "alone after bisecting": (raise_for_it, {"bisect_on_failure": True, "return_results": True}),
    "its retries are exhausted": (retry_it, {}),
    "its automatic retries are exhausted": (
        return_it,
        {"return_results": True, "autoretry_for": (ValueError,), "max_retries": 0},
    ),
    "retried automatically, alone after bisecting": (
        raise_for_it,
        {
            **{"bisect_on_failure": True, "return_results": True},
            **{"autoretry_for": (ValueError,), "max_retries": 0},
        },
    ),
}


def run(world: World, body: Callable[..., Any], **options: Any) -> None:
    world.define(lambda requests: body(world, requests), **options)
    world.run(None)


def records(caplog: pytest.LogCaptureFixture, level: int) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.levelno == level]


@pytest.mark.parametrize(("body", "options"), WAYS.values(), ids=WAYS)
def test_the_line_of_a_request(world: World, caplog: Any, body: Any, options: Any) -> None:
    """However it has failed: its id, the exception and the traceback, once."""
    run(world, body, **options)
    (record,) = records(caplog, logging.ERROR)
    assert record.getMessage() == LINE
    assert repr(record.exc_info[1]) == "ValueError('bad')"
    (line,) = [m for m in messages(caplog, logging.INFO) if m.startswith("Batch")]
    assert "succeeded in" in line
    assert "(1 failed" in line


@pytest.mark.parametrize(("body", "options"), WAYS.values(), ids=WAYS)
def test_the_signal_of_a_request(world: World, signal_log: Any, body: Any, options: Any) -> None:
    """Once, under its own id, while the exception is live."""
    live: list[Any] = []

    def receive(exception: Any, **_: Any) -> None:
        live.append(sys.exc_info()[1] is exception)

    signals.task_failure.connect(receive)
    try:
        run(world, body, **options)
    finally:
        signals.task_failure.disconnect(receive)
    failed = [
        (told["task_id"], told["exception"]) for name, _, told in signal_log if "fail" in name
    ]
    assert [(id, repr(exc)) for id, exc in failed] == [("id-1", "ValueError('bad')")]
    assert live == [True]


@pytest.mark.parametrize("throws", [(), (ValueError,)])
def test_the_line_is_that_of_an_ordinary_task(world: World, caplog: Any, throws: Any) -> None:
    """The same words, level, traceback and keys, also for an exception in `throws`."""

    @world.app.task(name="unit.control", throws=throws)
    def ordinary() -> None:
        raise ValueError("bad")

    caplog.set_level(logging.INFO, "celery.app.trace")
    ordinary.apply(task_id="id-1", throw=False)
    run(world, mark, throws=throws)
    theirs, ours = [r for r in caplog.records if re.match(r"Task \S+ raised", r.getMessage())]
    assert theirs.name == "celery.app.trace"
    assert ours.getMessage() == theirs.getMessage().replace("unit.control", "unit.click")
    assert ours.levelno == theirs.levelno == (logging.INFO if throws else logging.ERROR)
    assert bool(ours.exc_info) == bool(theirs.exc_info) == (not throws)
    assert theirs.data.keys() - {"trace_id"} <= ours.data.keys()
    assert "ValueError: bad" in ours.data["traceback"]
    assert ours.data["batch"] == "batch"
    assert "id-1" in ours.data["args"]


def test_a_body_that_raises_has_one_line(world: World, caplog: Any) -> None:
    """That of the batch, also for a request that it has marked with the same exception."""

    def body(world: World, requests: Any) -> None:
        exc = KeyError("all")
        requests[0].mark_as_failure(exc)
        raise exc

    run(world, body)
    (line,) = messages(caplog, logging.ERROR)
    assert line.startswith("Batch ")
    assert messages(caplog, logging.CRITICAL) == []


def test_a_body_that_raises_after_a_mark_has_two(world: World, caplog: Any) -> None:
    """One for the request that has failed for a reason of its own, one for the batch."""

    def body(world: World, requests: Any) -> None:
        mark(world, requests)
        raise KeyError("rest")

    run(world, body)
    own, batch = messages(caplog, logging.ERROR)
    assert own == LINE
    assert batch.startswith("Batch ")


def test_retries_that_are_exhausted_together_have_one(sending: World, caplog: Any) -> None:
    """The batch has failed as a whole, and so has its line."""

    def body(self: Any, requests: Any) -> None:
        raise self.retry(max_retries=0)

    sending.define(body, bind=True)
    sending.run(None)
    (line,) = messages(caplog, logging.ERROR)
    assert line.startswith("Batch ")
    assert "MaxRetriesExceededError" in line
    assert messages(caplog, logging.CRITICAL) == []


@pytest.mark.parametrize("item", [Ignore(), Reject(), KeyError], ids=["ignore", "reject", "result"])
def test_what_is_no_failure_has_none(world: World, caplog: Any, item: Any) -> None:
    """`Ignore` and `Reject` mean themselves, and a class of exceptions is a result."""
    world.app.conf.result_serializer = "pickle"
    world.app.conf.accept_content = ["json", "pickle"]
    run(world, lambda world, requests: [1, item, 3], return_results=True)
    assert messages(caplog, logging.ERROR) == []


def many(world: World, body: Callable[[Any], Any], count: int, **options: Any) -> None:
    run_batch(world.define(body, **options), [(n,) for n in range(count)])


def test_at_most_ten_lines(world: World, caplog: Any) -> None:
    """One more line counts the rest."""

    def body(requests: Any) -> None:
        for request in requests:
            request.mark_as_failure(ValueError(request.args[0]))

    many(world, body, 10)
    lines = messages(caplog, logging.ERROR)
    assert [line.rsplit(" ", 1)[-1] for line in lines] == [f"ValueError({n})" for n in range(10)]
    caplog.clear()
    many(world, body, 13)
    *lines, rest = messages(caplog, logging.ERROR)
    assert [line.rsplit(" ", 1)[-1] for line in lines] == [f"ValueError({n})" for n in range(10)]
    name, _, said = rest.partition(": ")
    assert name.startswith(f"Batch {world.task.name}[")
    assert said == (
        "3 more of its 13 requests have failed like the 10 above, each by an exception of its own"
    )


def test_expected_failures_do_not_hide_others(world: World, caplog: Any) -> None:
    """Lines are counted for each level."""

    def body(requests: Any) -> None:
        for request in requests:
            kind = OSError if request.args[0] == 11 else ValueError
            request.mark_as_failure(kind(request.args[0]))

    many(world, body, 12, throws=(ValueError,))
    (line,) = messages(caplog, logging.ERROR)
    assert line.endswith("raised unexpected: OSError(11)")
    expected = [line for line in messages(caplog, logging.INFO) if "raised expected" in line]
    assert len(expected) == 10
    assert any(
        line.endswith("each by an exception of its own") for line in messages(caplog, logging.INFO)
    )


class Unserialisable:
    def __reduce__(self) -> Any:
        raise TypeError("no pickle for me")


class Unprintable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no text for me")

    __str__ = __repr__


@pytest.mark.parametrize("way", ["method", "idiom"])
def test_a_result_that_cannot_be_stored(world: World, caplog: Any, way: str) -> None:
    """One line says what could not be done, instead of Celery's words."""
    world.app.conf.result_serializer = "pickle"

    def body(world: World, requests: Any) -> None:
        value = Unserialisable()
        if way == "method":
            requests[0].mark_as_done(value)
        else:
            world.app.backend.mark_as_done(requests[0].id, value, request=requests[0])

    run(world, body)
    (line,) = messages(caplog, logging.ERROR)
    assert line.startswith("Task unit.click[id-0] cannot end as done: ")
    assert "no pickle for me" in line


def test_an_exception_without_a_text(world: World, caplog: Any) -> None:
    """The log and the neighbours do without it."""

    def body(world: World, requests: Any) -> None:
        requests[0].mark_as_failure(Unprintable())
        requests[1].mark_as_done(1)

    run(world, body)
    (line,) = messages(caplog, logging.ERROR)
    assert line.startswith("Task unit.click[id-0] raised unexpected: <")
    assert world.states == ["FAILURE", "SUCCESS", "PENDING"]


def test_an_eager_call_that_raises_is_not_logged(world: World, caplog: Any) -> None:
    """As with an ordinary task: the caller gets the exception."""
    world.define(lambda requests: requests[0].mark_as_failure(ValueError("bad")))
    with pytest.raises(ValueError, match="bad"):
        world.task.apply((1,), throw=True)
    assert messages(caplog, logging.ERROR) == []
    assert world.task.apply((1,), throw=False).state == "FAILURE"
    assert len(messages(caplog, logging.ERROR)) == 1


FAILS_ALL: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "marked": (lambda r: r.mark_as_failure(ValueError(r.id)), {}),
    "returned": (lambda r: ValueError(r.id), {"return_results": True}),
    "retried": (lambda r: r.retry(exc=ValueError(r.id), max_retries=0), {}),
}


@pytest.mark.parametrize(("body", "options"), FAILS_ALL.values(), ids=FAILS_ALL)
def test_a_batch_of_which_every_request_has_failed(
    sending: World, caplog: Any, signal_log: Any, body: Any, options: Any
) -> None:
    """It has not succeeded: not in the log, not in the signals."""
    sending.define(lambda requests: [body(request) for request in requests], **options)
    sending.run(None)
    (line,) = [m for m in messages(caplog, logging.INFO) if m.startswith("Batch")]
    assert line.startswith("Batch unit.click[batch] of 3 requests, flushed by size, failed in ")
    assert line.endswith("s: every request has failed, the first with ValueError('id-0')")
    assert len(messages(caplog, logging.ERROR)) == 3
    assert messages(caplog, logging.CRITICAL) == []
    names = [name for name, *_ in signal_log]
    assert names == ["task_prerun", *["task_failure"] * 3, "task_postrun"]
    assert [told["task_id"] for _, _, told in signal_log[1:4]] == ["id-0", "id-1", "id-2"]
    postrun = signal_log[-1][2]
    assert (postrun["task_id"], postrun["state"]) == ("batch", "FAILURE")
    assert repr(postrun["retval"]) == "ValueError('id-0')"
    assert sending.states == ["FAILURE"] * 3


def test_a_batch_of_which_one_request_has_not_failed(world: World, signal_log: Any) -> None:
    """It has succeeded, and the log counts the others."""

    def body(requests: Any) -> None:
        for request in requests[1:]:
            request.mark_as_failure(ValueError(request.id))

    world.run(body)
    postrun = signal_log[-1][2]
    assert (postrun["state"], postrun["retval"]) == ("SUCCESS", None)
    assert "task_success" in [name for name, *_ in signal_log]


def test_what_fails_after_the_requests_is_not_silent(
    world: World, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their outcomes stay, and the log has a critical line."""

    def broken(*_: Any) -> None:
        raise OSError("broken")

    monkeypatch.setattr("celery_batches.pool.run.log_own_failures", broken)
    world.run(lambda requests: [request.mark_as_done(1) for request in requests])
    assert world.states == ["SUCCESS"] * 3
    assert messages(caplog, logging.CRITICAL) == ["Batch unit.click[batch]: OSError('broken')"]


@pytest.mark.parametrize(
    "exc", [SystemExit(3), MemoryError(), Ignore(), Reject(), Retry()], ids=repr
)
def test_an_exception_that_means_more_to_celery(world: World, signal_log: Any, exc: Any) -> None:
    """As a mark of every request, it fails them, and neither the process ends nor the batch."""
    world.app.conf.result_serializer = "pickle"
    world.app.conf.accept_content = ["json", "pickle"]

    def body(world: World, requests: Any) -> None:
        for request in requests:
            world.app.backend.mark_as_failure(request.id, exc, request=request)

    run(world, body)
    postrun = signal_log[-1][2]
    assert postrun["state"] == "FAILURE"
    assert repr(postrun["retval"]) == f"RuntimeError({repr(exc)!r})"


def test_an_exception_that_is_marked_again_and_again(world: World) -> None:
    """It keeps nothing of a batch alive."""
    exc = ValueError("constant")
    world.define(lambda requests: [request.mark_as_failure(exc) for request in requests])
    for _ in range(3):
        world.run(None)
        assert exc.__traceback__ is None


def test_what_fails_when_all_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Celery raises after the batch, its reports are as they were."""

    def broken(batch: Any) -> None:
        run_in_tracer(batch)
        raise OSError("broken")

    monkeypatch.setattr("celery_batches.pool.run.run_in_tracer", broken)
    world.define(lambda requests: [request.mark_as_done(1) for request in requests])
    has_failed, reports, _ = trace_batch("unit.click", "batch", world.requests(), "size", "w@h")
    assert has_failed
    assert reports == [(False, "1")] * 3


def away(*_: Any) -> None:
    raise OSError("away")


class Raising(Batches):
    """Its handlers raise for one request."""

    abstract = True

    def before_start(self, task_id: str, *_: Any) -> None:
        if task_id == "id-1":
            away()

    def on_success(self, retval: Any, task_id: str, *_: Any) -> None:
        if task_id == "eager":
            away()


def test_a_request_that_cannot_start(world: World, caplog: Any) -> None:
    """It fails alone, and the line says why."""
    run(world, lambda world, requests: None, base=Raising)
    (line,) = messages(caplog, logging.ERROR)
    assert line == "Task unit.click[id-1] cannot start: OSError('away')"


def test_requests_that_cannot_be_looked_up(
    world: World, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not run, and each has a line, although the batch has none."""
    monkeypatch.setattr("celery_batches.pool.run.deduplicates", lambda task: True)
    monkeypatch.setattr("celery_batches.pool.beginning.record_if_done_before", away)
    run(world, lambda world, requests: None)
    assert messages(caplog, logging.ERROR) == [
        f"Task unit.click[id-{n}] cannot be looked up: OSError('away')" for n in range(3)
    ]


def test_an_eager_call_whose_handler_raises(world: World, caplog: Any) -> None:
    """It fails, as the outcome could not be applied."""
    world.define(lambda requests: requests[0].mark_as_done(1), base=Raising)
    assert world.task.apply((1,), task_id="eager", throw=False).state == "FAILURE"
    (line,) = messages(caplog, logging.ERROR)
    assert line == "Task unit.click[eager] cannot end as done: OSError('away')"
