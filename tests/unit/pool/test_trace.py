"""Running the body of a batch: context, signals, handlers, reports and the log."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from celery import _state, current_task, signals, states
from celery.exceptions import Ignore, Reject

from celery_batches import Batches, SimpleRequest
from celery_batches.pool.trace import trace_batch
from celery_batches.trace import apply_batches_task
from kit.messages import protocol_2
from kit.requests import worker_request

Log = list[tuple[str, Any, dict[str, Any]]]
IDS = ["id-0", "id-1", "id-2"]


class Unpicklable(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("needs two")
        self.cannot = lambda: (a, b)


class Interrupted(BaseException):
    """Not an Exception, as KeyboardInterrupt."""


@pytest.fixture(autouse=True)
def _debug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, logger="celery_batches"):
        yield


def make(app: Any, body: Any, **options: Any) -> Any:
    return app.task(**{"name": "unit.click", "base": Batches, **options})(body)


def requests_for(app: Any, task: Any, **options: Any) -> list[SimpleRequest]:
    return [
        SimpleRequest.from_request(
            worker_request(app, task, protocol_2(app, i, task.name, [i], {"k": i}, **options))
        )
        for i in IDS
    ]


def run(app: Any, task: Any, **options: Any) -> list[tuple[bool, Any]]:
    """Run a batch as the pool does; return the reports."""
    requests = requests_for(app, task, **options)
    broken, reports, runtime = trace_batch(task.name, "batch-id", requests, "size", "w@h")
    assert broken is False
    assert runtime >= 0
    assert len(reports) == len(IDS)
    pickle.dumps(reports)
    return reports


def ok(requests: Any) -> str:
    return "value"


def fail(requests: Any) -> None:
    raise KeyError("boom")


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno == level and r.name.startswith("celery_batch")]


def test_a_report_for_each_request(app: Any) -> None:
    """A body that returns gives each request a report of success, with what it returned."""
    assert run(app, make(app, ok)) == [(False, "'value'")] * 3


def test_the_body_gets_the_list(app: Any) -> None:
    """The body runs once, with all requests in order."""
    calls: list[list[str]] = []

    def body(requests: Any) -> None:
        calls.append([request.id for request in requests])

    run(app, make(app, body))
    assert calls == [IDS]


@pytest.mark.parametrize("fails", [False, True])
def test_signals_bracket_the_batch(app: Any, signal_log: Log, fails: bool) -> None:
    """Signals come once for the batch, under its own id, in Celery's order."""
    order: list[str] = []

    def body(requests: Any) -> None:
        order.extend(name for name, *_ in signal_log)
        if fails:
            raise KeyError("boom")

    task = make(app, body)
    run(app, task)
    end = "task_failure" if fails else "task_success"
    assert [name for name, *_ in signal_log] == ["task_prerun", end, "task_postrun"]
    assert order == ["task_prerun"]
    assert {sender for _, sender, _ in signal_log} == {task}
    assert {k["task_id"] for _, _, k in signal_log if "task_id" in k} == {"batch-id"}
    assert signal_log[-1][2]["state"] == (states.FAILURE if fails else states.SUCCESS)


def test_the_context_is_that_of_the_batch(app: Any) -> None:
    """While the body runs, current_task and self.request are those of the batch."""
    seen: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        seen.extend([current_task.name, self.request.id, self.request.hostname])
        seen.extend([self.request.called_directly, self.request.is_eager])

    task = make(app, body, bind=True)
    run(app, task)
    assert seen == ["unit.click", "batch-id", "w@h", False, False]
    assert task.request_stack.top is None


def test_an_exception_fails_every_request(app: Any) -> None:
    """When the body raises, each request fails with that exception, for its caller too."""
    reports = run(app, make(app, fail))
    for failed, einfo in reports:
        assert failed is True
        assert "boom" in einfo.traceback
    for task_id in IDS:
        result = app.AsyncResult(task_id)
        assert result.state == states.FAILURE
        assert isinstance(result.result, KeyError)
        assert "in fail" in result.traceback


def test_success_writes_nothing(app: Any) -> None:
    """Requests that the body says nothing of stay without a result, as documented."""
    run(app, make(app, ok))
    assert [app.AsyncResult(i).state for i in IDS] == [states.PENDING] * 3


def test_a_failure_is_not_stored_where_nobody_wants_it(app: Any) -> None:
    """ignore_result holds for failures, unless errors are to be stored all the same."""
    run(app, make(app, fail), ignore_result=True)
    assert app.AsyncResult("id-0").state == states.PENDING
    keep = make(app, fail, name="unit.keep", store_errors_even_if_ignored=True)
    run(app, keep, ignore_result=True)
    assert app.AsyncResult("id-0").state == states.FAILURE


def test_marked_requests_keep_their_result(app: Any) -> None:
    """A result that was given before the body raised is not turned into a failure."""

    def body(requests: Any) -> None:
        app.backend.mark_as_done(requests[0].id, 42, request=requests[0])
        raise KeyError("boom")

    reports = run(app, make(app, body))
    assert [failed for failed, _ in reports] == [False, True, True]
    assert app.AsyncResult("id-0").result == 42
    assert [app.AsyncResult(i).state for i in IDS] == ["SUCCESS", "FAILURE", "FAILURE"]


def test_a_request_can_fail_alone(app: Any) -> None:
    """A request that the body marks as failed is reported so; its neighbours succeed."""

    def body(requests: Any) -> None:
        app.backend.mark_as_failure(requests[1].id, ValueError("bad"), request=requests[1])

    reports = run(app, make(app, body))
    assert [failed for failed, _ in reports] == [False, True, False]
    assert app.AsyncResult("id-1").state == states.FAILURE


def test_an_unpicklable_exception(app: Any) -> None:
    """An exception that cannot be pickled still fails each request, and says what it was."""

    def body(requests: Any) -> None:
        raise Unpicklable(1, 2)

    reports = run(app, make(app, body))
    assert all(failed for failed, _ in reports)
    assert app.AsyncResult("id-0").state == states.FAILURE
    assert "Unpicklable" in str(reports[0][1].traceback)


@pytest.mark.parametrize(
    ("exc", "state"),
    [(Ignore(), states.IGNORED), (Reject("no", requeue=True), states.REJECTED)],
    ids=["ignore", "reject"],
)
def test_ignore_and_reject(app: Any, signal_log: Log, exc: Exception, state: str) -> None:
    """Ignore and Reject are for each request what they are for a task, and no failure."""

    def body(requests: Any) -> None:
        raise exc

    reports = run(app, make(app, body))
    for failed, einfo in reports:
        assert failed is True
        # As `Request.on_success` looks at it, with or without a pickle in between.
        assert isinstance(getattr(einfo.exception, "exc", einfo.exception), type(exc))
    assert [name for name, *_ in signal_log] == ["task_prerun", "task_postrun"]
    assert signal_log[-1][2]["state"] == state
    assert app.AsyncResult("id-0").state == states.PENDING


class Loud(Batches):
    """Notes what its handlers are told, and breaks where it is told to."""

    abstract = True
    breaks: Any = ()

    def _note(self, name: str, *args: Any) -> None:
        told.append((name, args))
        if name in self.breaks:
            raise RuntimeError(f"broken {name}")

    def before_start(self, *args: Any) -> None:
        self._note("before_start", *args)

    def on_success(self, *args: Any) -> None:
        self._note("on_success", *args)

    def on_failure(self, *args: Any) -> None:
        self._note("on_failure", *args)

    def after_return(self, *args: Any) -> None:
        self._note("after_return", *args)


told: list[tuple[str, Any]] = []


@pytest.fixture(autouse=True)
def _clear_told() -> None:
    told.clear()


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_per_request(app: Any, fails: bool) -> None:
    """Handlers are called for each request with its own id and arguments."""
    run(app, make(app, fail if fails else ok, base=Loud))
    end = "on_failure" if fails else "on_success"
    for name, skip in (("before_start", 0), (end, 1), ("after_return", 2)):
        calls = [list(args[skip : skip + 3]) for n, args in told if n == name]
        assert calls == [[i, [i], {"k": i}] for i in IDS]
    assert len(told) == 9


@pytest.mark.parametrize("name", ["on_success", "after_return"])
def test_a_broken_handler_changes_nothing(
    app: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A handler that raises is logged; each request's outcome stays, and each handler is called."""
    assert run(app, make(app, ok, base=Loud, breaks=[name])) == [(False, "'value'")] * 3
    assert len(told) == 9
    errors = [r for r in lines(caplog, logging.ERROR) if f"broken {name}" in r.getMessage()]
    assert len(errors) == 3


def test_a_broken_on_failure_changes_nothing(app: Any) -> None:
    """A failure whose handler raises is the same failure."""
    reports = run(app, make(app, fail, base=Loud, breaks=["on_failure"]))
    assert all(failed and "boom" in e.traceback for failed, e in reports)
    assert len(told) == 9


def test_one_line_per_batch(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A batch that succeeds is one INFO line that says it all; its requests are for DEBUG."""
    run(app, make(app, ok))
    (record,) = lines(caplog, logging.INFO)
    for part in ("unit.click", "batch-id", "3 requests", "size", "succeeded in", "value"):
        assert part in record.getMessage()
    debug = [r.getMessage() for r in lines(caplog, logging.DEBUG)]
    for task_id in IDS:
        assert sum(task_id in line for line in debug) == 1
    assert lines(caplog, logging.ERROR) == []


def test_one_error_line_per_failed_batch(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A batch that fails is one ERROR line with the exception, and no INFO line."""
    run(app, make(app, fail))
    (record,) = lines(caplog, logging.ERROR)
    for part in ("unit.click", "batch-id", "3 requests", "boom"):
        assert part in record.getMessage()
    assert record.exc_info
    assert lines(caplog, logging.INFO) == []


def test_a_backend_that_is_down(
    app: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that raises is logged for each request, and the reports come back all the same."""

    def down(*args: Any, **kwargs: Any) -> None:
        raise OSError("backend down")

    task = make(app, fail)
    monkeypatch.setattr(task.backend, "mark_as_failure", down)
    reports = run(app, task)
    assert all(failed and "boom" in e.traceback for failed, e in reports)
    down_lines = [r for r in lines(caplog, logging.ERROR) if "backend down" in r.getMessage()]
    assert len(down_lines) == 3


def test_what_celery_raises_fails_the_batch(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error outside the body is a failure of each request: the pool never hears of it."""

    def broken(*args: Any) -> None:
        raise OSError("loader")

    task = make(app, ok)
    monkeypatch.setattr(app.loader, "on_task_init", broken)
    broken_run, reports, _ = trace_batch(
        task.name, "batch-id", requests_for(app, task), "size", "w@h"
    )
    assert broken_run is True
    assert [failed for failed, _ in reports] == [True] * 3
    assert app.AsyncResult("id-2").state == states.FAILURE
    assert _state._task_stack.top is None


def test_errbacks_per_request(app: Any) -> None:
    """The error callback of each request is called with that request, once."""
    called: list[str] = []
    app.conf.task_always_eager = True

    @app.task(name="unit.errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        called.append(request.id)

    run(app, make(app, fail), errbacks=[errback.s()])
    assert called == IDS


@pytest.mark.parametrize("exc", [KeyError("boom"), Interrupted()], ids=repr)
def test_stacks_are_clean(app: Any, exc: BaseException) -> None:
    """However the body ends, the stacks of tasks and requests are as they were."""

    def body(requests: Any) -> None:
        raise exc

    task = make(app, body)
    requests = requests_for(app, task)
    if isinstance(exc, Interrupted):
        with pytest.raises(Interrupted):
            trace_batch(task.name, "batch-id", requests, "size")
    else:
        trace_batch(task.name, "batch-id", requests, "size")
    assert _state._task_stack.top is None
    assert task.request_stack.top is None


def test_body_args_of_apply_buffer(app: Any) -> None:
    """Arguments that apply_buffer was given take the place of the list."""
    seen: list[Any] = []

    def body(*args: Any) -> None:
        seen.append(args)

    task = make(app, body)
    trace_batch(task.name, "b", requests_for(app, task), "manual", "w@h", ("x", "y"))
    assert seen == [("x", "y")]


def test_apply_batches_task(app: Any) -> None:
    """The documented entry point runs the body with loglevel and logfile on its request."""
    seen: list[Any] = []

    def body(self: Any, requests: Any) -> int:
        seen.extend([self.request.loglevel, self.request.logfile])
        return len(requests)

    task = make(app, body, bind=True)
    assert apply_batches_task(task, (requests_for(app, task),), 20, "worker.log") == 3
    assert seen == [20, "worker.log"]


def test_apply_batches_task_of_a_body_that_raises(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """When the body raises, the entry point logs it, fails the requests and returns None."""
    task = make(app, fail)
    assert apply_batches_task(task, (requests_for(app, task),), 0, None) is None
    assert app.AsyncResult("id-0").state == states.FAILURE
    assert len(lines(caplog, logging.ERROR)) == 1


def test_signal_handlers_that_raise_change_nothing(app: Any) -> None:
    """A receiver of a signal that raises does not touch the batch."""

    def receive(**kwargs: Any) -> None:
        raise RuntimeError("receiver")

    signals.task_prerun.connect(receive)
    signals.task_postrun.connect(receive)
    try:
        assert run(app, make(app, ok)) == [(False, "'value'")] * 3
    finally:
        signals.task_prerun.disconnect(receive)
        signals.task_postrun.disconnect(receive)
