"""A process that is lost or a greenlet that is killed: each member is told what became of it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from celery import signals
from celery.exceptions import (
    Terminated,
    WorkerLostError,
)
from celery.worker import state as worker_state

from kit.jobs import RecordedJob, boom
from kit.messages import IDS
from kit.pool import Pool, einfo_of


def test_a_lost_process_is_logged_once(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Each member of a lost batch fails with WorkerLostError; the log has one line of it."""
    world = RecordedJob(app)
    options = world.send()
    options["accept_callback"](1, 0.0)
    options["error_callback"](einfo_of(WorkerLostError("signal 9")))
    assert [type(app.AsyncResult(id).result) for id in IDS] == [WorkerLostError] * 3
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "of 3 requests was lost" in record.getMessage()
    assert world.released
    assert world.finished


def test_a_lost_process_with_reject_on_worker_lost(app: Any) -> None:
    """What is to be delivered again after a lost process is not a failure."""
    world = RecordedJob(app, acks_late=True, reject_on_worker_lost=True)
    options = world.send()
    options["accept_callback"](1, 0.0)
    options["error_callback"](einfo_of(WorkerLostError("signal 9")))
    assert world.said == [["requeue"]] * 3
    assert app.AsyncResult("id-0").state == "PENDING"


def test_an_exit_of_the_body_is_a_lost_process(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Some pools report SystemExit; it is told as what it means, and logged once."""
    world = RecordedJob(app)
    world.send()["callback"](einfo_of(SystemExit(3)))
    assert [type(app.AsyncResult(id).result) for id in IDS] == [WorkerLostError] * 3
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "SystemExit(3)" in record.getMessage()


@pytest.mark.parametrize("greenlet", [False, True])
def test_terminating_a_member_is_a_lost_process_for_its_neighbours(
    app: Any, greenlet: bool
) -> None:
    """The member that is revoked is REVOKED, the others fail as if the process was lost."""
    world = RecordedJob(app)
    world.pool.handle = None
    options = world.send()
    options["accept_callback"](7, 0.0)
    worker_state.revoked.add("id-1")
    killed = lambda: options["callback"]((False, None, None))  # noqa: E731
    pool = Pool(kills=killed if greenlet else None)
    world.requests[1].terminate(pool, "TERM")
    assert pool.terminated == [(7, signal.SIGTERM)]
    if not greenlet:
        options["error_callback"](einfo_of(Terminated(15)))
    assert [app.AsyncResult(id).state for id in IDS] == ["FAILURE", "REVOKED", "FAILURE"]
    assert isinstance(app.AsyncResult("id-0").result, WorkerLostError)
    assert world.released
    assert world.finished


@pytest.fixture
def announced() -> Iterator[list[tuple[str, str]]]:
    """The signals ``task_revoked`` and ``task_retry``, with the ids that they were sent for."""
    sent: list[tuple[str, str]] = []

    def on_revoked(request: Any, **_: Any) -> None:
        sent.append(("revoked", request.id))

    def on_retry(request: Any, **_: Any) -> None:
        sent.append(("retry", request.id))

    signals.task_revoked.connect(on_revoked)
    signals.task_retry.connect(on_retry)
    yield sent
    signals.task_revoked.disconnect(on_revoked)
    signals.task_retry.disconnect(on_retry)


class GreenletPool(Pool):
    """Has one greenlet: it ends at once (eventlet), or when the next one has its turn (gevent)."""

    def __init__(self, world: RecordedJob, *, at_once: bool) -> None:
        super().__init__(kills=self._end if at_once else None)
        self.callback: Any = world.send()["callback"]
        world.job.on_accepted(7, 0.0)

    def _end(self) -> None:
        callback, self.callback = self.callback, None
        if callback:
            callback((False, None, None))

    def take_turns(self) -> None:
        if self.terminated:
            self._end()


@pytest.mark.parametrize("terminated", [["id-1"], ["id-1", "id-2"]])
@pytest.mark.parametrize("acks_late", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_member_that_was_only_revoked_ends_when_its_greenlet_is_killed(
    app: Any,
    announced: list[tuple[str, str]],
    at_once: bool,
    acks_late: bool,
    terminated: list[str],
) -> None:
    """Killed for another member, it is REVOKED too; each of them is announced once."""
    world = RecordedJob(app, acks_late=acks_late)
    pool = GreenletPool(world, at_once=at_once)
    worker_state.revoked.update(["id-1", "id-2"])
    for request in world.requests:
        if request.id in terminated:
            request.terminate(pool, "TERM")
    pool.take_turns()
    assert [app.AsyncResult(id).state for id in IDS] == ["FAILURE", "REVOKED", "REVOKED"]
    assert announced == [("revoked", "id-1"), ("revoked", "id-2")]
    assert world.said == [["ack"]] * 3
    assert world.finished


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("acks_late", [False, True])
def test_a_greenlet_cancelled_with_its_connection_is_no_revocation(
    app: Any, announced: list[tuple[str, str]], at_once: bool, acks_late: bool
) -> None:
    """As for an ordinary task, each member is in state RETRY: its message is delivered again."""
    world = RecordedJob(app, acks_late=acks_late)
    pool = GreenletPool(world, at_once=at_once)
    worker_state.revoked.add("id-2")
    for request in world.requests:
        request.cancel(pool)
    pool.take_turns()
    assert [app.AsyncResult(id).state for id in IDS] == ["RETRY"] * 3
    assert announced == [("retry", id) for id in IDS]
    assert world.said == ([[], [], []] if acks_late else [["ack"]] * 3)
    assert not worker_state.active_requests
    assert world.finished


@pytest.mark.parametrize("at_once", [False, True])
def test_a_greenlet_that_acknowledges_early_is_cancelled_and_not_revoked(
    app: Any, announced: list[tuple[str, str]], at_once: bool
) -> None:
    """It may end before Celery has noted that it was cancelled."""
    world = RecordedJob(app)
    pool = GreenletPool(world, at_once=at_once)
    for request in world.requests:
        request.cancel(pool)
    pool.take_turns()
    assert announced == [("retry", id) for id in IDS]
    assert [app.AsyncResult(id).state for id in IDS] == ["RETRY"] * 3
    assert world.finished


def test_a_system_exit_from_the_pool(app: Any) -> None:
    """A pool that reports SystemExit as a result fails each member instead of losing the batch."""
    world = RecordedJob(app)
    world.send()["callback"](boom())
    assert world.ids_told("on_failure") == IDS
    assert world.released
    assert world.finished


def test_a_killed_greenlet(app: Any) -> None:
    """What the gevent pool says of a greenlet that was killed is no success."""
    world = RecordedJob(app)
    world.send()["callback"]((False, None, None))
    assert world.ids_told("on_success") == []
    assert world.ids_told("on_failure") == IDS
    assert world.released
    assert world.finished
