"""Overrides of `flush`: each request that leaves the buffer is accounted for."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject
from celery.worker import state as worker_state

from kit.clock import Clock
from kit.flushing import Flushing, Override

NOTHING_PASSED: Override = lambda flush, requests: None  # noqa: E731


def first_two(flush: Any, requests: Any) -> Any:
    return flush(list(requests)[:2])


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


@pytest.fixture
def make(app: Any, clock: Clock) -> Any:
    return lambda override, **options: Flushing(app, clock, override, **options)


@pytest.mark.parametrize(
    "override",
    [
        first_two,
        lambda flush, requests: flush(r for r in requests if r.args[0] != 2),
        lambda flush, requests: flush(tuple(requests)[1::-1]),
        lambda flush, requests: [flush([request]) for request in requests[:2]],
        lambda flush, requests: flush({r.id: r for r in requests if r.args[0] < 2}.values()),
    ],
    ids=["list", "generator", "reversed", "split", "values"],
)
@pytest.mark.parametrize("acks_late", [False, True])
def test_what_flush_leaves_out_is_acknowledged_and_ignored(
    override: Override, acks_late: bool, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In whatever form it passes on the rest, which runs; and one warning says what to do."""
    world = make(override, acks_late=acks_late)
    world.receive_batch()
    assert world.said[2] == ["ack"]
    assert "id-2" not in worker_state.requests
    world.run_all()
    assert sorted(i for ids in world.bodies for i in ids) == ["id-0", "id-1"]
    assert world.said == [["ack"]] * 3
    assert world.state(2) == "PENDING"
    (warning,) = warnings_in(caplog)
    assert "unit.click" in warning
    assert "1 of 3" in warning
    assert "request.reject()" in warning
    world.assert_nothing_left()


def test_a_batch_of_which_nothing_is_passed_on(make: Any, caplog: Any) -> None:
    """Batch after batch, it neither fills the prefetch count nor stops the worker."""
    world = make(NOTHING_PASSED)
    for _ in range(5):
        world.receive_batch()
    assert world.said == [["ack"]] * 15
    assert len(warnings_in(caplog)) == 5
    world.assert_nothing_left()


def test_a_batch_that_is_passed_on_whole_is_no_news(make: Any, caplog: Any) -> None:
    """In another order, as a copy or in parts."""
    world = make(lambda flush, requests: [flush(requests[2:]), flush(list(requests[:2])[::-1])])
    world.receive_batch()
    world.run_all()
    assert world.bodies == [["id-2"], ["id-1", "id-0"]]
    assert world.said == [["ack"]] * 3
    assert not warnings_in(caplog)
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda request: request.acknowledge(), "ack"),
        (lambda request: request.reject(requeue=False), "reject"),
        (lambda request: request.reject(requeue=True), "requeue"),
    ],
    ids=["ack", "reject", "requeue"],
)
def test_flush_may_acknowledge_or_reject_what_it_leaves_out(
    end: Any, said: str, make: Any, caplog: Any
) -> None:
    """That is seen as the override wants it, and needs no warning."""

    def override(flush: Any, requests: Any) -> None:
        end(requests[0])
        flush(requests[1:])

    world = make(override)
    world.receive_batch()
    world.run_all()
    assert world.said == [[said], ["ack"], ["ack"]]
    assert world.bodies == [["id-1", "id-2"]]
    assert not warnings_in(caplog)
    world.assert_nothing_left()


@pytest.mark.parametrize("acks_late", [False, True])
def test_what_is_passed_on_later_still_runs_once(make: Any, acks_late: bool) -> None:
    """It was told as ignored by then; its message is acknowledged once, its result is stored."""
    kept: list[Any] = []

    def keep_the_first(flush: Any, requests: Any) -> None:
        late, kept[:] = list(kept), [requests[0]]
        flush([*late, *requests[1:]])

    world = make(keep_the_first, acks_late=acks_late)
    world.body = lambda requests: [request.mark_as_done(request.id) for request in requests]
    world.receive_batch()
    assert "id-0" not in worker_state.requests
    world.receive_batch()
    assert "id-0" in worker_state.requests, "it can be revoked"
    world.run_all()
    assert world.bodies == [["id-1", "id-2"], ["id-0", "id-4", "id-5"]]
    assert world.said == [["ack"]] * 6
    assert world.app.AsyncResult("id-0").result == "id-0"
    world.assert_nothing_left()


def test_what_is_kept_may_be_revoked(make: Any) -> None:
    """It does not run when it is passed on, and its caller hears of that."""
    kept: list[Any] = []
    world = make(lambda flush, requests: kept.extend(requests))
    world.receive_batch()
    worker_state.revoked.add("id-1")
    world.override = None
    world.task.apply_buffer(kept)
    world.run_all()
    assert world.bodies == [["id-0", "id-2"]]
    assert world.state(1) == "REVOKED"
    assert world.said == [["ack"]] * 3
    world.assert_nothing_left()


def test_a_request_that_is_passed_on_again_runs_once(make: Any, caplog: Any) -> None:
    """In one call, in two, and after it has ended: a warning says so."""
    seen: list[Any] = []

    def override(flush: Any, requests: Any) -> None:
        seen.extend(requests)
        flush([*requests, requests[0]])
        flush(requests)

    world = make(override)
    world.receive_batch()
    world.run_all()
    world.task.apply_buffer(seen)
    assert world.bodies == [["id-0", "id-1", "id-2"]]
    assert not world.consumer.sent
    assert [text.count("passed on") for text in warnings_in(caplog)] == [1, 1, 1]
    assert ["1 of 4" in warnings_in(caplog)[0], "3 of 3" in warnings_in(caplog)[2]] == [True] * 2
    world.assert_nothing_left()


@pytest.mark.parametrize("attempt", range(20))
def test_threads_that_pass_on_the_same_requests(make: Any, attempt: int) -> None:
    """While `flush` returns and leaves them out: each runs once, and is acknowledged once."""
    threads: list[threading.Thread] = []
    start = threading.Barrier(4)

    def pass_on(requests: Any) -> None:
        start.wait()
        for request in requests:
            world.task.apply_buffer([request])

    def override(flush: Any, requests: Any) -> None:
        threads.extend(threading.Thread(target=pass_on, args=(requests,)) for _ in range(3))
        for thread in threads:
            thread.start()
        start.wait()

    world = make(override)
    world.receive_batch()
    for thread in threads:
        thread.join()
    assert sorted(job.requests[0].id for job in world.consumer.sent) == ["id-0", "id-1", "id-2"]
    assert set(worker_state.requests) == {"id-0", "id-1", "id-2"}
    world.run_all()
    assert world.said == [["ack"]] * 3
    world.assert_nothing_left()


class Wrong(Exception):
    """The override is wrong."""


def raising(flush: Any, requests: Any) -> None:
    raise Wrong("the override is wrong")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "ack"),
        ({"acks_late": True}, "ack"),
        ({"acks_late": True, "acks_on_failure_or_timeout": False}, "reject"),
    ],
)
def test_a_flush_that_raises_fails_its_requests(
    options: Any, said: str, make: Any, caplog: Any, signal_log: Any
) -> None:
    """Their callers get that exception; they are acknowledged as a task that raises."""
    world = make(raising, **options)
    called: list[Any] = []

    @world.app.task(name="unit.errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        called.append((request.id, repr(exc)))

    world.receive(link_error=None)
    world.receive(errbacks=[errback.s()])
    world.receive()
    assert [world.state(number) for number in range(3)] == ["FAILURE"] * 3
    assert str(world.app.AsyncResult("id-2").result) == "the override is wrong"
    assert called == [("id-1", "Wrong('the override is wrong')")]
    assert world.said == [[said]] * 3
    failures = [kwargs["task_id"] for name, _, kwargs in signal_log if name == "task_failure"]
    assert failures == ["id-0", "id-1", "id-2"]
    (line,) = [r for r in caplog.records if r.levelno >= 30]
    assert line.levelname == "CRITICAL"
    assert "unit.click" in line.getMessage()
    assert line.exc_info
    world.override = lambda flush, requests: flush(requests)
    world.receive_batch()
    world.run_all()
    assert world.bodies == [["id-3", "id-4", "id-5"]]
    world.assert_nothing_left()


def test_a_flush_that_raises_after_it_has_passed_some_on(make: Any) -> None:
    """Those run; the rest fails, and does not run if it is passed on after that."""
    seen: list[Any] = []

    def override(flush: Any, requests: Any) -> None:
        seen.extend(requests)
        flush(requests[:2])
        raise Wrong

    world = make(override)
    world.receive_batch()
    world.task.apply_buffer(seen)
    world.run_all()
    assert world.bodies == [["id-0", "id-1"]]
    assert world.state(2) == "FAILURE"
    assert world.said == [["ack"]] * 3
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("exc", "state", "said", "level"),
    [
        (Ignore(), "PENDING", "ack", None),
        (Reject(requeue=False), None, "reject", None),
        (Reject(requeue=True), "PENDING", "requeue", None),
        (MemoryError("too much"), "FAILURE", "ack", "CRITICAL"),
    ],
    ids=repr,
)
def test_a_flush_that_raises_what_celery_obeys(
    exc: Exception, state: Any, said: str, level: Any, make: Any, caplog: Any
) -> None:
    """`Ignore` and `Reject` mean for each request what they mean in an ordinary task."""

    def override(flush: Any, requests: Any) -> None:
        raise exc

    world = make(override, acks_late=True)
    world.receive_batch()
    assert world.said == [[said]] * 3
    # Before Celery 5.7 a request that is rejected has no state.
    assert state is None or world.state(0) == state
    assert [r.levelname for r in caplog.records if r.levelno >= 30] == [level] * bool(level)
    world.assert_nothing_left()


def test_a_batch_that_the_worker_cannot_take(make: Any, monkeypatch: Any, caplog: Any) -> None:
    """Its requests fail, and nothing is charged for it."""

    def broken(job: Any) -> None:
        raise OSError("no pool")

    world = make(lambda flush, requests: flush(requests))
    monkeypatch.setattr(world.consumer, "on_task_request", broken)
    world.receive_batch()
    assert [world.state(number) for number in range(3)] == ["FAILURE"] * 3
    assert world.said == [["ack"]] * 3
    assert [r.levelname for r in caplog.records] == ["CRITICAL"]
    world.assert_nothing_left()


def test_a_batch_that_is_passed_on_again_after_an_error(make: Any, monkeypatch: Any) -> None:
    """An override may try again: what could not be sent is not claimed."""
    take = [True, False]

    def sometimes(job: Any) -> None:
        if take.pop():
            world.consumer.sent.append(job)
        else:
            raise OSError("not now")

    def override(flush: Any, requests: Any) -> None:
        with pytest.raises(OSError, match="not now"):
            flush(requests)
        flush(requests)

    world = make(override)
    monkeypatch.setattr(world.consumer, "on_task_request", sometimes)
    world.receive_batch()
    world.run_all()
    assert world.bodies == [["id-0", "id-1", "id-2"]]
    world.assert_nothing_left()


@pytest.mark.parametrize("acks_late", [False, True])
def test_a_batch_that_the_pool_refuses(make: Any, caplog: Any, acks_late: bool) -> None:
    """Whenever it is sent: a batch may have waited for a free process after `flush` returned."""

    class Closed:
        def apply_async(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("cannot schedule new futures after shutdown")

    from celery.exceptions import TaskRevokedError

    world = make(lambda flush, requests: flush(requests), acks_late=acks_late)
    world.receive_batch()
    (job,) = world.consumer.sent
    with pytest.raises(TaskRevokedError):
        job.execute_using_pool(Closed())
    assert [world.state(number) for number in range(3)] == ["FAILURE"] * 3
    assert world.said == [["ack"]] * 3
    assert [r.levelname for r in caplog.records] == ["CRITICAL"]
    world.assert_nothing_left()
