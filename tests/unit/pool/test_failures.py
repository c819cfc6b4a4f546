"""What fails one request spares its neighbours; what fails the batch spares marked requests."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import (
    Ignore,
    Reject,
    SoftTimeLimitExceeded,
)

from celery_batches.core.outcomes import decide
from celery_batches.pool.trace import trace_batch
from kit.tracing import WAYS, World, exceptions, mark_done


class Unserialisable:
    def __reduce__(self) -> Any:
        raise TypeError("no pickle for me")


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("way", WAYS)
def test_a_result_that_cannot_be_stored_fails_its_request_alone(
    world: World, way: str, serializer: str
) -> None:
    """The neighbours of a request whose result cannot be serialised are untouched."""
    world.app.conf.result_serializer = serializer
    world.app.conf.accept_content = ["json", "pickle"]

    def body(requests: Any) -> None:
        mark_done(world, way, requests[0], Unserialisable())
        mark_done(world, way, requests[1], "fine")

    reports = world.run(body, {"errbacks": [world.errback.s()]})
    assert [failed for failed, _ in reports] == [True, False, False]
    assert world.states == ["FAILURE", "SUCCESS", "PENDING"]
    assert world.called == [("errback", "id-0")]


@pytest.mark.parametrize("exc", [MemoryError("much"), SystemExit(3)], ids=repr)
def test_failures_that_would_end_the_worker(world: World, exc: Any) -> None:
    """The main process never hears of an exception that Celery would end it for."""

    def body(requests: Any) -> None:
        world.app.backend.mark_as_failure(requests[0].id, exc, request=requests[0])
        if isinstance(exc, MemoryError):
            raise exc

    world.app.conf.result_serializer = "pickle"
    world.app.conf.accept_content = ["json", "pickle"]
    reports = world.run(body)
    assert reports[0][0] is True
    assert type(exceptions(reports)[0]) is RuntimeError
    assert repr(exc) in str(exceptions(reports)[0])


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("odd one")
        self.cannot = lambda: None


def test_an_unpicklable_exception_of_one_request(world: World) -> None:
    """It fails with what can be told of it, and its neighbours succeed."""

    def body(requests: Any) -> None:
        requests[1].mark_as_failure(Unpicklable())
        requests[2].mark_as_done(3)

    reports = world.run(body)
    assert [failed for failed, _ in reports] == [False, True, False]
    assert "odd one" in str(world.app.AsyncResult("id-1").result)


def test_the_traceback_of_a_failure_is_its_own(world: World) -> None:
    """An exception that the body has caught keeps the traceback that it has."""

    def deep() -> None:
        raise ValueError("deep")

    def body(requests: Any) -> None:
        try:
            deep()
        except ValueError as exc:
            requests[0].mark_as_failure(exc)
        requests[1].mark_as_failure(ValueError("never raised"))

    world.run(body)
    assert "in deep" in world.app.AsyncResult("id-0").traceback
    assert "never raised" in world.app.AsyncResult("id-1").traceback


def test_many_failures_with_one_exception_share_its_report(world: World) -> None:
    """What the main process is told is pickled once, not once for each request."""

    def body(requests: Any) -> None:
        exc = ValueError("the same")
        for request in requests:
            request.mark_as_failure(exc)

    reports = world.run(body)
    assert len({id(report) for _, report in reports}) == 1


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(Ignore(), Ignore), (Reject("no", requeue=False), Reject)],
    ids=["ignore", "reject"],
)
def test_predicates_spare_marked_requests(world: World, raised: Exception, kind: Any) -> None:
    """Ignore and Reject are for the requests that have no outcome yet."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        raise raised

    reports = world.run(body)
    assert [failed for failed, _ in reports] == [False, True, True]
    assert all(isinstance(exc, kind) for exc in exceptions(reports)[1:])
    assert world.states == ["SUCCESS", "PENDING", "PENDING"]


@pytest.mark.parametrize("requeue", [True, False])
def test_rejecting_one_request(world: World, requeue: bool) -> None:
    """A rejected request is told to the main process as Celery's Reject."""
    reports = world.run(lambda requests: requests[1].reject(requeue=requeue))
    exc = exceptions(reports)[1]
    assert isinstance(exc, Reject)
    assert exc.requeue is requeue
    assert world.states == ["PENDING"] * 3


def test_the_soft_time_limit_is_a_failure_like_another(world: World) -> None:
    """Requests that were marked before the time was up keep their outcome."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        raise SoftTimeLimitExceeded

    world.run(body)
    assert world.states == ["SUCCESS", "FAILURE", "FAILURE"]
    assert isinstance(world.app.AsyncResult("id-1").result, SoftTimeLimitExceeded)


def test_an_error_outside_of_the_body_spares_marked_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the batch cannot be brought to its end, requests end as the body has said."""

    errors = [OSError("broken")]

    def broken(*args: Any, **kwargs: Any) -> Any:
        if errors:
            raise errors.pop()
        return decide(*args, **kwargs)

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)

    monkeypatch.setattr("celery_batches.pool.run.decide", broken)
    world.define(body)
    broken_run, reports, _ = trace_batch(world.task.name, "b", world.requests(), "size", "w@h")
    assert broken_run is True
    assert [failed for failed, _ in reports] == [False, True, True]
    assert world.states == ["SUCCESS", "FAILURE", "FAILURE"]


def test_system_exit_leaves_everything_to_the_pool(world: World) -> None:
    """SystemExit passes through, as for a task: the pool says what it means."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        raise SystemExit(1)

    world.define(body)
    with pytest.raises(SystemExit):
        trace_batch(world.task.name, "batch", world.requests(), "size", "w@h")
    assert world.states == ["PENDING"] * 3
