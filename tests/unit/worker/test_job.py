"""One batch on its way through the pool: what each member is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import signals
from celery.exceptions import (
    InvalidTaskError,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.worker import state as worker_state
from celery.worker.request import Request
from kombu.common import QoS
from unit.support import make_request, protocol_2

from celery_batches import Batches
from celery_batches.pool.trace import trace_batch
from celery_batches.worker.job import BatchJob
from celery_batches.worker.prefetch import Prefetch


class Pool:
    """Keeps what it is given, and hands out a handle that a weak reference can point to."""

    class Handle:
        def __init__(self) -> None:
            self.told: list[int] = []

        def terminate(self, signum: int) -> None:
            self.told.append(signum)

    def __init__(self, *, handle: bool = True) -> None:
        self.handle = self.Handle() if handle else None
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.options: dict[str, Any] = {}

    def apply_async(self, target: Any, **options: Any) -> Any:
        self.calls.append((target, options))
        return self.handle


class World:
    """A batch of real requests, whose callbacks are recorded before Celery's own run."""

    def __init__(self, app: Any, size: int = 3, **options: Any) -> None:
        headers = options.pop("headers", [{}] * size)

        @app.task(base=Batches, name="unit.click", **options)
        def click(requests: Any) -> None: ...

        self.task = click
        self.told: list[tuple[Any, ...]] = []
        self.broken: set[str] = set()
        self.messages = [protocol_2(app, f"id-{i}", click.name, **headers[i]) for i in range(size)]
        self.requests = [make_request(app, click, message) for message in self.messages]
        for request in self.requests:
            for name in ("on_accepted", "on_success", "on_failure", "on_timeout"):
                self._spy(request, name)
        self.prefetch = Prefetch(QoS(lambda prefetch_count: None, 4), lambda: 4)
        self.job = BatchJob(
            *(click, self.requests),
            trigger="size",
            hostname="w@h",
            charge=self.prefetch.charge(size),
        )
        self.pool = Pool()

    def _spy(self, request: Any, name: str) -> None:
        original = getattr(request, name)

        def spy(*args: Any, **kwargs: Any) -> Any:
            self.told.append((name, request.id, *args))
            if request.id in self.broken:
                raise RuntimeError("broken callback")
            return original(*args, **kwargs)

        setattr(request, name, spy)

    @property
    def released(self) -> bool:
        """Whether the batch is charged for no more."""
        return self.prefetch.total == 4

    @property
    def finished(self) -> bool:
        """Whether it counts as a task no more."""
        return self.prefetch.busy(0, 0) == 0

    def send(self) -> dict[str, Any]:
        self.job.execute_using_pool(self.pool)
        ((_, options),) = self.pool.calls
        return options

    def ids_told(self, name: str) -> list[str]:
        return [told[1] for told in self.told if told[0] == name]

    @property
    def said(self) -> list[list[str]]:
        return [[what for what, _ in message.channel.said] for message in self.messages]


IDS = ["id-0", "id-1", "id-2"]
OK = (False, [(False, "None")] * 3, 0.5)


def einfo_of(exc: BaseException) -> ExceptionInfo:
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()


def boom() -> ExceptionInfo:
    return einfo_of(KeyError("boom"))


def test_the_pool_gets_one_task(app: Any) -> None:
    """A batch is one task to the pool, under an id of its own, with all members in order."""
    world = World(app)
    options = world.send()
    name, batch_id, members, trigger, hostname, body_args = options["args"]
    assert (name, batch_id, trigger, hostname) == ("unit.click", world.job.id, "size", "w@h")
    assert [member.id for member in members] == IDS
    assert body_args is None
    assert options["correlation_id"] == world.job.id
    assert world.job.id not in IDS


def test_every_callback_reaches_every_member(app: Any) -> None:
    """Accepted and succeeded: each member hears both, with its own report, and is acknowledged."""
    world = World(app)
    options = world.send()
    options["accept_callback"](123, 0.0)
    options["callback"]((False, [(False, "a"), (False, "b"), (False, "c")], 0.5))
    assert world.ids_told("on_accepted") == IDS
    assert [told[2] for told in world.told if told[0] == "on_success"] == [
        *((False, "a", 0.5), (False, "b", 0.5), (False, "c", 0.5))
    ]
    assert world.said == [["ack"]] * 3
    assert {request.worker_pid for request in world.requests} == {123}
    assert worker_state.total_count == {"unit.click": 3}


def test_acks_late_waits_for_the_result(app: Any) -> None:
    """With acks_late no member is acknowledged before the batch has ended."""
    world = World(app, acks_late=True)
    options = world.send()
    options["accept_callback"](123, 0.0)
    assert world.said == [[]] * 3
    assert not world.released
    options["callback"](OK)
    assert world.said == [["ack"]] * 3
    assert world.released
    assert world.finished


def test_a_failed_member_does_not_fail_its_neighbours(app: Any) -> None:
    """A report of failure is told to the one that it is about."""
    world = World(app, acks_late=True)
    options = world.send()
    options["accept_callback"](1, 0.0)
    options["callback"]((False, [(False, "a"), (True, boom()), (False, "c")], 0.5))
    assert world.ids_told("on_failure") == ["id-1"]
    assert world.ids_told("on_success") == IDS
    assert world.released
    assert world.finished


def test_a_failure_is_told_as_the_exception_that_it_is(app: Any) -> None:
    """Pools without processes hand over billiard's wrapper of it, which events must not show."""
    world = World(app)
    einfo = boom()
    assert type(einfo.exception) is not KeyError
    world.send()["callback"]((False, [(True, einfo), (False, "b"), (True, einfo)], 0.5))
    assert [type(told[2].exception) for told in world.told if told[0] == "on_failure"] == [
        *(KeyError, KeyError)
    ]


def test_a_lost_batch_is_lost_for_every_member(app: Any) -> None:
    """What the pool could not run at all fails for each member."""
    world = World(app)
    world.send()["error_callback"](boom())
    assert world.ids_told("on_failure") == IDS
    assert world.released
    assert world.finished


def test_the_hard_time_limit_is_told_to_every_member(app: Any) -> None:
    """Each member hears of the hard time limit, which ends the batch."""
    world = World(app)
    world.send()["timeout_callback"](False, 5)
    assert [told[1:] for told in world.told] == [(id, False, 5) for id in IDS]
    assert world.released
    assert world.finished
    assert [app.AsyncResult(id).state for id in IDS] == ["FAILURE"] * 3


def test_a_soft_time_limit_is_one_line(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The soft time limit is logged once for the batch, which goes on."""
    world = World(app)
    world.send()["timeout_callback"](True, 5)
    (record,) = caplog.records
    assert "soft time limit (5s) exceeded" in record.getMessage()
    assert "of 3 requests" in record.getMessage()
    assert not world.released


def test_a_request_class_of_its_own_hears_of_a_soft_time_limit(app: Any) -> None:
    """A custom Request class is told of a soft time limit for each member."""
    told: list[Any] = []

    class Told(Request):
        def on_timeout(self, soft: bool, timeout: float) -> None:
            told.append((self.id, soft, timeout))

    world = World(app)
    world.requests[1] = make_request(app, world.task, world.messages[1], cls=Told)
    world.send()["timeout_callback"](True, 5)
    assert told == [("id-1", True, 5)]


def errbacks_of(app: Any) -> tuple[Any, list[str]]:
    called: list[str] = []

    @app.task(name="unit.errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        called.append(request.id)

    return errback, called


@pytest.mark.parametrize("late", [True, False])
def test_the_hard_time_limit_fails_each_member_once(
    app: Any, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool reports a hard time limit twice; errbacks and chords hear of it once."""
    app.conf.task_always_eager = True
    errback, called = errbacks_of(app)
    world = World(app, acks_late=late, headers=[{"errbacks": [errback.s()]}] * 3)
    options = world.send()
    options["accept_callback"](1, 0.0)
    options["error_callback"](einfo_of(TimeLimitExceeded(5)))
    options["timeout_callback"](False, 5)
    assert called == IDS
    assert world.released
    assert world.finished
    assert world.said == [["ack"]] * 3
    app.conf.task_always_eager = False
    assert isinstance(app.AsyncResult("id-1").result, TimeLimitExceeded)


def test_a_lost_process_is_logged_once(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Each member of a lost batch fails with WorkerLostError; the log has one line of it."""
    world = World(app)
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
    world = World(app, acks_late=True, reject_on_worker_lost=True)
    options = world.send()
    options["accept_callback"](1, 0.0)
    options["error_callback"](einfo_of(WorkerLostError("signal 9")))
    assert world.said == [["requeue"]] * 3
    assert app.AsyncResult("id-0").state == "PENDING"


def test_an_exit_of_the_body_is_a_lost_process(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Some pools report SystemExit; it is told as what it means, and logged once."""
    world = World(app)
    world.send()["callback"](einfo_of(SystemExit(3)))
    assert [type(app.AsyncResult(id).result) for id in IDS] == [WorkerLostError] * 3
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "SystemExit(3)" in record.getMessage()


class TerminatingPool:
    """Ends what it is told to: a process a little later, a greenlet at once."""

    def __init__(self, at_once: Any = None) -> None:
        self.terminated: list[Any] = []
        self.at_once = at_once

    def terminate_job(self, pid: int, signal: Any) -> None:
        self.terminated.append(pid)
        if self.at_once is not None:
            self.at_once()


@pytest.mark.parametrize("greenlet", [False, True])
def test_terminating_a_member_is_a_lost_process_for_its_neighbours(
    app: Any, greenlet: bool
) -> None:
    """The member that is revoked is REVOKED, the others fail as if the process was lost."""
    world = World(app)
    world.pool.handle = None
    options = world.send()
    options["accept_callback"](7, 0.0)
    worker_state.revoked.add("id-1")
    killed = lambda: options["callback"]((False, None, None))  # noqa: E731
    pool = TerminatingPool(killed if greenlet else None)
    world.requests[1].terminate(pool, "TERM")
    assert pool.terminated == [7]
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


class GreenletPool(TerminatingPool):
    """Has one greenlet: it ends at once (eventlet), or when the next one has its turn (gevent)."""

    def __init__(self, world: World, *, at_once: bool) -> None:
        super().__init__(self._end if at_once else None)
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
    world = World(app, acks_late=acks_late)
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
def test_a_greenlet_cancelled_with_its_connection_is_no_revocation(
    app: Any, announced: list[tuple[str, str]], at_once: bool
) -> None:
    """As for an ordinary task, each member is in state RETRY: its message is delivered again."""
    world = World(app, acks_late=True)
    pool = GreenletPool(world, at_once=at_once)
    worker_state.revoked.add("id-2")
    for request in world.requests:
        request.cancel(pool)
    pool.take_turns()
    assert [app.AsyncResult(id).state for id in IDS] == ["RETRY"] * 3
    assert announced == [("retry", id) for id in IDS]
    assert world.said == [[], [], []]
    assert not worker_state.active_requests
    assert world.finished


@pytest.mark.parametrize("acks_late", [False, True])
def test_a_batch_that_is_dropped_before_it_is_accepted_is_empty(app: Any, acks_late: bool) -> None:
    """A pool without processes comes to it later, runs nothing and tells nobody."""
    world = World(app, acks_late=acks_late)
    options = world.send()
    members = options["args"][2]
    for request in world.requests:
        worker_state.task_reserved(request)
    world.job.drop()
    assert members == []
    assert world.finished
    options["accept_callback"](7, 0.0)
    options["callback"](trace_batch(*options["args"]))
    assert world.told == []
    assert world.said == [[], [], []]
    assert not worker_state.reserved_requests
    assert not worker_state.requests
    assert world.finished


def test_a_batch_that_is_dropped_while_it_is_sent(app: Any) -> None:
    """When another thread loses the connection meanwhile, the pool gets a batch of nobody."""
    world = World(app)

    class LosingPool(Pool):
        @property
        def options(self) -> dict[str, Any]:  # type: ignore[override]
            world.job.drop()
            return {}

        @options.setter
        def options(self, options: Any) -> None:
            """It has none."""

    world.pool = LosingPool()
    options = world.send()
    assert options["args"][2] == []
    assert (options["timeout"], options["soft_timeout"]) == (None, None)
    assert world.finished


@pytest.mark.parametrize("callback", ["callback", "error_callback"])
def test_a_dropped_batch_that_a_process_ran_all_the_same_is_not_told(
    app: Any, caplog: pytest.LogCaptureFixture, callback: str
) -> None:
    """Celery before 5.7 does not forget what it has written to a process."""
    world = World(app)
    options = world.send()
    world.job.drop()
    options["accept_callback"](7, 0.0)
    options[callback](OK if callback == "callback" else boom())
    assert world.told == []
    assert caplog.records == []


def test_a_batch_that_runs_is_not_dropped(app: Any) -> None:
    """Once the pool has started on a batch it ends as any other."""
    world = World(app)
    options = world.send()
    options["accept_callback"](7, 0.0)
    world.job.drop()
    options["callback"](OK)
    assert world.ids_told("on_success") == IDS


@pytest.mark.parametrize("callback", ["accept", "success", "failure", "timeout"])
def test_a_broken_callback_does_not_lose_the_neighbours(
    app: Any, caplog: pytest.LogCaptureFixture, callback: str
) -> None:
    """When a callback raises for one member, the others are told all the same, and it is logged."""
    world = World(app)
    options = world.send()
    world.broken = {"id-0", "id-1"}
    call, name = {
        "accept": (lambda: options["accept_callback"](1, 0.0), "on_accepted"),
        "success": (lambda: options["callback"](OK), "on_success"),
        "failure": (lambda: options["error_callback"](boom()), "on_failure"),
        "timeout": (lambda: options["timeout_callback"](False, 5), "on_timeout"),
    }[callback]
    call()
    assert world.ids_told(name) == IDS
    assert sum("broken callback" in record.getMessage() for record in caplog.records) == 2
    assert world.released
    assert world.finished == (callback != "accept")


@pytest.mark.parametrize("acks_late", [True, False])
def test_room_is_released_exactly_once(app: Any, acks_late: bool) -> None:
    """However many callbacks the pool makes, what the batch held is given back once."""
    world = World(app, acks_late=acks_late)
    options = world.send()
    options["accept_callback"](1, 0.0)
    assert world.released == (not acks_late)
    assert not world.finished
    options["timeout_callback"](True, 5)
    assert not world.finished
    options["timeout_callback"](False, 5)
    options["error_callback"](boom())
    options["callback"](OK)
    assert world.released
    assert world.finished


LIMITS = [
    ([(None, None)] * 3, {}, (None, None)),
    ([(None, None)] * 3, {"time_limit": 50, "soft_time_limit": 40}, (50, 40)),
    ([(30, 20), (None, 25), (10, None)], {"time_limit": 50, "soft_time_limit": 40}, (10, 20)),
    # Those without a limit of their own have that of the task.
    ([(100, 90)] + [(None, None)] * 2, {"time_limit": 50, "soft_time_limit": 40}, (50, 40)),
    ([(100, 90)] * 3, {"time_limit": 50, "soft_time_limit": 40}, (100, 90)),
    ([(100, 90)] + [(None, None)] * 2, {}, (100, 90)),
]


@pytest.mark.parametrize(("members", "options", "expected"), LIMITS)
def test_the_tightest_time_limit_counts(
    app: Any, members: Any, options: dict[str, Any], expected: Any
) -> None:
    """A batch gets the tightest limit that a member asks for, else that of the task."""
    headers = [{"time_limit": hard, "soft_time_limit": soft} for hard, soft in members]
    sent = World(app, headers=headers, **options).send()
    assert (sent["timeout"], sent["soft_timeout"]) == expected


@pytest.mark.parametrize("limit", [["x", None], [None, "x"], 5, [1], [1, 2, 3], {"a": 1}])
def test_a_member_with_senseless_limits_is_refused_alone(
    app: Any, limit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nonsense in one member's headers rejects that one, and the rest of the batch runs."""
    world = World(app)
    world.requests[1].time_limits = limit
    options = world.send()
    assert [member.id for member in options["args"][2]] == ["id-0", "id-2"]
    assert world.said[1] == ["reject"]
    options["callback"]((False, [(False, "None")] * 2, 0.1))
    assert world.ids_told("on_success") == ["id-0", "id-2"]
    assert world.released
    assert world.finished
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "unit.click[id-1]" in line
    assert isinstance(app.AsyncResult("id-1").result, InvalidTaskError)


def test_revoked_members_are_dropped(app: Any) -> None:
    """A member that was revoked while it was buffered is not run; its neighbours are."""
    world = World(app)
    worker_state.revoked.add("id-1")
    options = world.send()
    assert [member.id for member in options["args"][2]] == ["id-0", "id-2"]
    assert world.said[1] == ["ack"]
    options["callback"]((False, [(False, "None")] * 2, 0.1))
    assert world.ids_told("on_success") == ["id-0", "id-2"]


def test_expired_members_are_dropped(app: Any) -> None:
    """A member that expired while it was buffered is not run."""
    past = "2001-01-01T00:00:00+00:00"
    world = World(app, headers=[{}, {"expires": past}, {}])
    assert [member.id for member in world.send()["args"][2]] == ["id-0", "id-2"]


def test_nothing_is_sent_when_all_are_revoked(app: Any) -> None:
    """A batch without members never reaches the pool, and gives back its room."""
    world = World(app)
    worker_state.revoked.update(IDS)
    with pytest.raises(TaskRevokedError):
        world.job.execute_using_pool(world.pool)
    assert world.pool.calls == []
    assert world.released
    assert world.finished


def test_terminate_reaches_the_pool_through_any_member(app: Any) -> None:
    """What `Request.terminate` tells the pool's handle of an ordinary task, the batch's hears."""
    world = World(app)
    world.send()
    for request in world.requests:
        request.terminate(TerminatingPool(), "TERM")
    assert world.pool.handle
    assert world.pool.handle.told == [15, 15, 15]


def test_a_pool_without_handles(app: Any) -> None:
    """A pool that returns nothing, as solo does, is fine."""
    world = World(app)
    world.pool = Pool(handle=False)
    world.send()
    world.requests[0].terminate(TerminatingPool(), "TERM")


def test_body_args_cross_to_the_pool(app: Any) -> None:
    """Arguments that apply_buffer was given for the body reach it."""
    world = World(app)
    world.job._body_args = ("x",)
    assert world.send()["args"][-1] == ("x",)


def test_a_system_exit_from_the_pool(app: Any) -> None:
    """A pool that reports SystemExit as a result fails each member instead of losing the batch."""
    world = World(app)
    world.send()["callback"](boom())
    assert world.ids_told("on_failure") == IDS
    assert world.released
    assert world.finished


def test_the_limits_of_a_member_that_is_refused_do_not_count(app: Any) -> None:
    """Who does not run in the batch says nothing of how long it may take."""
    world = World(app, headers=[{}, {"time_limit": 1}, {}], time_limit=50)
    world.requests[1]._message = None
    sent = world.send()
    assert [member.id for member in sent["args"][2]] == ["id-0", "id-2"]
    assert sent["timeout"] == 50


def test_the_limit_of_the_worker_counts_too(app: Any) -> None:
    """Members without any limit have that of the pool, from the settings."""
    world = World(app, headers=[{"time_limit": 100}, {}, {}])
    world.pool.options = {"timeout": 60, "soft_timeout": 55}
    sent = world.send()
    assert (sent["timeout"], sent["soft_timeout"]) == (60, 55)


def test_a_killed_greenlet(app: Any) -> None:
    """What the gevent pool says of a greenlet that was killed is no success."""
    world = World(app)
    world.send()["callback"]((False, None, None))
    assert world.ids_told("on_success") == []
    assert world.ids_told("on_failure") == IDS
    assert world.released
    assert world.finished


def test_errors_are_logged_with_the_batch(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A log line about a member's callback names the task and the batch."""
    world = World(app)
    options = world.send()
    world.broken = {"id-2"}
    with caplog.at_level(logging.ERROR):
        options["callback"](OK)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "unit.click" in record.getMessage()
    assert world.job.id in record.getMessage()
    assert record.exc_info
