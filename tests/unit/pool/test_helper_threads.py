"""Helper threads of a body mark requests by the result backend, the way of 0.11."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread
from typing import Any

import pytest
from celery import Celery

from celery_batches import Batches, SimpleRequest
from celery_batches.pool.run import BatchRun
from kit.clock import Clock
from kit.consumer import FakeConsumer
from kit.log import messages
from kit.tasks import make_task
from kit.tracing import World


def in_a_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function, *args, **kwargs).result()


def given(backend: Any, request: SimpleRequest, value: Any) -> None:
    if isinstance(value, Exception):
        backend().mark_as_failure(request.id, value, request=request)
    else:
        backend().mark_as_done(request.id, value, request=request)


def by_id(backend: Any, request: SimpleRequest, value: Any) -> None:
    if isinstance(value, Exception):
        backend().mark_as_failure(request.id, value)
    else:
        backend().mark_as_done(request.id, value)


#: Where a helper thread finds a result backend. In Celery, each thread makes its own.
BACKENDS = {
    "that of the app": lambda world: world.app.backend,
    "that of the task": lambda world: world.task.backend,
}
CALLS = {"with the request": given, "by id": by_id}


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("mark", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_mark_of_a_helper_thread_is_the_outcome(
    world: World, backend: Any, mark: Any, raises: bool
) -> None:
    """With all that follows: links, errbacks, and no failure when the body raises."""

    def find() -> Any:
        return backend(world)

    def body(requests: Any) -> None:
        assert in_a_thread(find) is not find()
        in_a_thread(mark, find, requests[0], 42)
        in_a_thread(mark, find, requests[1], ValueError("bad"))
        assert world.states[:2] == ["SUCCESS", "FAILURE"]  # At once.
        if raises:
            raise KeyError("boom")

    linked = {"callbacks": [world.callback.s()], "chain": [world.following.s()]}
    reports = world.run(body, linked, {"errbacks": [world.errback.s()]})
    assert [failed for failed, _ in reports] == [False, True, raises]
    assert world.states == ["SUCCESS", "FAILURE", "FAILURE" if raises else "PENDING"]
    assert world.called == [("callback", 42), ("following", 42), ("errback", "id-1")]


def test_a_thread_that_is_older_than_the_task(app: Any) -> None:
    """Its backend was made before the first batch ran, after the worker has started."""
    world = World(app)
    world.define(lambda requests: threads.submit(mark, requests).result())

    def mark(requests: Any) -> None:
        app.backend.mark_as_done(requests[0].id, 5)

    # As when a worker starts.
    world.task.Strategy(world.task, app, FakeConsumer(app, Clock()))
    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: app.backend).result()
        reports = world.run(None)
    assert reports[0] == (False, "5")


def test_batches_that_run_at_once_are_not_confused(world: World) -> None:
    """Each in a thread of its own, with helper threads that mark by id."""
    both = Barrier(2)

    def body(requests: Any) -> None:
        both.wait(30)

        def mark(request: SimpleRequest) -> None:
            world.app.backend.mark_as_done(request.id, request.args[0])

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(mark, requests))
        both.wait(30)

    world.define(body)
    first, second = world.requests()[:2], world.requests()[2:]

    def run(requests: Any) -> Any:
        batch = BatchRun(world.task, requests, requests[0].id, "size", "w@h")
        batch.run()
        return batch.reports

    with ThreadPoolExecutor(2) as threads:
        ran = [threads.submit(run, requests) for requests in (first, second)]
        assert [each.result(30) for each in ran] == [
            [(False, "'id-0'"), (False, "'id-1'")],
            [(False, "'id-2'")],
        ]
    assert world.states == ["SUCCESS"] * 3


def test_a_message_that_was_delivered_twice(world: World) -> None:
    """Both batches have the request. A mark by its id is stored, and counts for one that runs."""
    runs: list[int] = []
    inner: list[Any] = []

    def body(requests: Any) -> None:
        runs.append(1)
        if len(runs) == 1:
            inner.append(world.run(None)[0])
            in_a_thread(by_id, lambda: world.app.backend, requests[0], "outer")

    assert world.run(body)[0] == (False, "'outer'")
    assert world.app.AsyncResult("id-0").result == "outer"
    assert inner == [(False, "None")]


def test_marks_of_an_ordinary_task_are_its_own(world: World) -> None:
    """Beside a batch, whatever the id."""
    world.app.conf.task_store_eager_result = True

    @world.app.task(name="unit.ordinary", bind=True)
    def ordinary(self: Any) -> int:
        world.app.backend.mark_as_done(self.request.id, 6)
        return 7

    def body(requests: Any) -> None:
        ordinary.apply(task_id="id-1")
        world.app.backend.mark_as_done("elsewhere", 8)

    reports = world.run(body)
    assert reports[1] == (False, "None")
    assert world.app.AsyncResult("id-1").result in (6, 7)
    assert world.app.AsyncResult("elsewhere").result == 8


def test_what_celery_says_of_a_request_from_elsewhere(world: World) -> None:
    """The main process of the worker fails a request by its context, as at a hard time limit."""
    seen: list[Any] = []

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        context = world.task.request_stack.top
        in_a_thread(
            lambda: world.app.backend.mark_as_failure("id-0", OSError("limit"), request=context)
        )
        seen.append(world.app.AsyncResult("id-0").result)

    world.run(body)
    assert repr(seen) == "[OSError('limit')]"


def test_a_message_that_comes_again_while_its_batch_ends(world: World, caplog: Any) -> None:
    """A mark by its id counts for the batch that still takes one."""
    reports: list[Any] = []

    class Handled(Batches):
        abstract = True

        def on_success(self, *_: Any) -> None:
            if not reports:
                reports.append(None)
                reports[:] = world.run(None)

    def body(requests: Any) -> None:
        if reports:
            in_a_thread(by_id, lambda: world.app.backend, requests[0], "again")

    world.define(body, base=Handled)
    world.run(None)
    assert reports[0] == (False, "'again'")
    assert "has no effect" not in caplog.text


def test_an_app_is_prepared_once(world: World) -> None:
    """However many batches run."""
    world.run(lambda requests: None)
    (prepared,) = [value for name, value in vars(world.app).items() if name == "_get_backend"]
    world.run(None)
    assert vars(world.app)["_get_backend"] is prepared


def straggle(world: World, body: Any, *headers: Any) -> list[SimpleRequest]:
    kept: list[SimpleRequest] = []

    def keep(requests: Any) -> Any:
        kept.extend(requests)
        return body(requests)

    world.run(keep, *headers)
    return kept


def fail(requests: Any) -> None:
    raise KeyError("boom")


def mark_all(requests: Any) -> None:
    for request in requests:
        request.mark_as_done("first")


@pytest.mark.parametrize(
    ("body", "state", "kind"), [(mark_all, "SUCCESS", "done"), (fail, "FAILURE", "failed")]
)
def test_a_thread_that_comes_too_late(
    world: World, caplog: Any, body: Any, state: str, kind: str
) -> None:
    """The outcome stays, and the log says so."""
    kept = straggle(world, body)
    caplog.clear()
    in_a_thread(given, lambda: world.app.backend, kept[0], "late")
    assert world.app.AsyncResult("id-0").result != "late"
    assert world.states[0] == state
    (line,) = messages(caplog, logging.WARNING)
    assert line == (
        "<SimpleRequest: unit.click[id-0] args=['id-0'] kwargs={}>: its batch has ended, and it is "
        f"{kind}: mark_as_done has no effect"
    )


def test_a_request_that_was_handed_on(world: World, caplog: Any) -> None:
    """What the body has not marked may get its result later, as in 0.11."""
    chain = {"chain": [world.following.s()]}
    kept = straggle(world, lambda requests: None, {}, chain)
    caplog.clear()
    in_a_thread(given, lambda: world.app.backend, kept[0], "late")
    assert messages(caplog, logging.WARNING) == []
    in_a_thread(given, lambda: world.app.backend, kept[1], "late")
    assert [world.app.AsyncResult(f"id-{n}").result for n in (0, 1)] == ["late"] * 2
    assert world.called == []
    (line,) = messages(caplog, logging.WARNING)
    assert line == (
        "<SimpleRequest: unit.click[id-1] args=['id-1'] kwargs={}>: its batch has ended before "
        "mark_as_done was called, so its link or chain does not continue. Mark it before the body "
        "of the task returns"
    )


def test_a_thread_that_still_writes_when_the_body_returns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is left to it: the link is called once."""
    writes, go_on = Event(), Event()
    threads: list[Thread] = []

    def mark(request: SimpleRequest) -> None:
        backend = world.app.backend
        store = backend.store_result

        def wait(*args: Any, **kwargs: Any) -> Any:
            writes.set()
            assert go_on.wait(30)
            return store(*args, **kwargs)

        backend.store_result = wait
        backend.mark_as_done(request.id, 5)

    def body(requests: Any) -> None:
        threads.append(Thread(target=mark, args=(requests[0],)))
        threads[0].start()
        assert writes.wait(30)

    reports = world.run(body, {"callbacks": [world.callback.s()]})
    go_on.set()
    threads[0].join(30)
    assert reports[0] == (False, "5")
    assert world.called == [("callback", 5)]
    assert world.states[0] == "SUCCESS"


def test_an_app_without_the_method(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Celery names it otherwise, marks in the thread of the body count as before."""
    monkeypatch.setattr("celery_batches.pool.marking.MAKER", "_unknown")
    world = World(app)
    reports = world.run(lambda requests: by_id(lambda: world.app.backend, requests[0], 3))
    assert reports[0] == (False, "3")


def test_the_task_of_another_app(app: Any) -> None:
    """Only the app of the task makes other backends."""
    other = Celery("other", backend="cache+memory://", set_as_current=False)
    World(app).run(lambda requests: None)
    make_task(other)
    assert "_get_backend" in vars(app)
    assert "_get_backend" not in vars(other)


def test_the_tracer_of_an_eager_call_is_no_late_mark(world: World, caplog: Any) -> None:
    """Celery marks the batch under its id, which is that of the call."""
    task = world.define(lambda requests: requests[0].mark_as_done(5))
    assert task.apply((1,)).get() == 5
    assert messages(caplog, logging.WARNING) == []
