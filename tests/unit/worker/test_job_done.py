"""A batch without reports: each member that is done is told so, and only the rest of what came."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state as worker_state

from celery_batches.core.end_record import End, EndRecord
from celery_batches.errors import exception_of
from celery_batches.worker import records
from kit.jobs import RecordedJob
from kit.messages import IDS
from kit.pool import Pool, einfo_of

EARLY: dict[str, Any] = {}
LATE = {"acks_late": True}
REJECTING = {"acks_late": True, "reject_on_worker_lost": True}
UNACKNOWLEDGING = {"acks_late": True, "acks_on_failure_or_timeout": False}
OPTIONS = [EARLY, LATE, REJECTING, UNACKNOWLEDGING]


class Done:
    """A batch of three that runs; the first member is done, and the second has failed."""

    def __init__(
        self, app: Any, *, stored: Any = ("id-1", "id-0"), since: float = 0.0, **options: Any
    ) -> None:
        app.conf.task_always_eager = True
        self.app = app
        self.errors: list[str] = []

        @app.task(name="unit.errback")
        def errback(request: Any, exc: Any, traceback: Any) -> None:
            self.errors.append(request.id)

        self.world = RecordedJob(app, headers=[{"errbacks": [errback.s()]}] * 3, **options)
        for task_id in stored:
            if task_id == "id-1":
                app.backend.mark_as_failure(task_id, KeyError("why"))
            else:
                app.backend.mark_as_done(task_id, "result")
        self.calls = self.world.send()
        self.calls["accept_callback"](7, since)

    def states(self) -> list[str]:
        self.app.conf.task_always_eager = False
        return [self.app.AsyncResult(id).state for id in IDS]

    def result(self, task_id: str) -> Any:
        self.app.conf.task_always_eager = False
        return self.app.AsyncResult(task_id).result


@pytest.fixture
def settled(app: Any) -> Callable[..., Done]:
    return lambda **options: Done(app, **options)


def lose(done: Done) -> None:
    done.calls["error_callback"](einfo_of(WorkerLostError("signal 9")))


def time_out(done: Done) -> None:
    done.calls["error_callback"](einfo_of(TimeLimitExceeded(5)))
    done.calls["timeout_callback"](False, 5)


def time_out_of_a_greenlet(done: Done) -> None:
    done.calls["timeout_callback"](False, 5)


def fail_to_report(done: Done) -> None:
    done.calls["error_callback"](einfo_of(TypeError("cannot pickle the reports")))


def exit_from_the_body(done: Done) -> None:
    done.calls["callback"](einfo_of(SystemExit(3)))


WAYS = [lose, time_out, time_out_of_a_greenlet, fail_to_report, exit_from_the_body]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_only_the_rest_hears_of_the_end(settled: Any, way: Any, options: Any) -> None:
    done = settled(**options)
    way(done)
    world = done.world
    assert next(told[1:] for told in world.told if told[0] == "on_success") == (
        "id-0",
        (False, "'result'", None),
    )
    assert world.ids_told("on_success") == ["id-0", "id-1"]
    # Celery's own `on_success` calls this for the second.
    assert set(world.ids_told("on_failure")) <= {"id-1", "id-2"}
    assert world.said[0] == ["ack"]
    assert world.said[1] == (["reject"] if options is UNACKNOWLEDGING else ["ack"])
    assert done.states()[:2] == ["SUCCESS", "FAILURE"]
    if world.said[2] != ["requeue"]:
        assert done.states()[2] == "FAILURE"
        assert done.errors == ["id-2"]
    assert set(done.errors) <= {"id-2"}
    assert isinstance(done.result("id-1"), KeyError)
    assert "id-0" in worker_state.successful_requests
    assert not {"id-1", "id-2"} & set(worker_state.successful_requests)
    assert world.finished
    assert world.released


def test_one_warning_names_the_batch(settled: Any, caplog: pytest.LogCaptureFixture) -> None:
    done = settled()
    lose(done)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert line.startswith("Batch unit.click[")
    assert "2 of 3 requests had ended before: WorkerLostError" in line
    (error,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "of 1 requests was lost" in error


def test_nothing_is_lost_if_all_had_ended(settled: Any, caplog: pytest.LogCaptureFixture) -> None:
    done = settled()
    done.app.backend.mark_as_done("id-2", "result")
    lose(done)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert done.states() == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert done.errors == []


def test_a_failure_of_an_earlier_run_is_none_of_this(settled: Any) -> None:
    """A redelivered call may have one. It fails by what has become of this run."""
    done = settled(since=monotonic() + 60)
    lose(done)
    assert done.errors == ["id-1", "id-2"]
    assert isinstance(done.result("id-1"), WorkerLostError)


def test_what_was_stored_last_may_not_have_been_told(app: Any) -> None:
    """Then its errbacks are called, at worst once more."""
    done = Done(app, stored=("id-0", "id-1"))
    lose(done)
    assert done.errors == ["id-1", "id-2"]


@pytest.mark.parametrize(
    ("header", "is_old"), [({}, False), ({"retries": 1}, True), ({"redelivered": True}, True)]
)
def test_a_request_that_was_sent_again_ends_as_that(app: Any, header: Any, is_old: bool) -> None:
    """Its process has stored that. If it was there before, it says nothing of this run."""
    world = RecordedJob(app, acks_late=True, headers=[{}, header, {}])
    if "redelivered" in header:
        world.requests[1].delivery_info["redelivered"] = True
    calls = world.send()
    calls["accept_callback"](7, 0.0)
    app.backend.mark_as_retry("id-1", ValueError("later"), "its traceback")
    calls["error_callback"](einfo_of(WorkerLostError("signal 9")))
    assert app.AsyncResult("id-1").state == ("FAILURE" if is_old else "RETRY")
    assert world.ids_told("on_success") == ([] if is_old else ["id-1"])
    assert world.said == [["ack"]] * 3
    assert world.finished


def test_a_backend_that_is_away(settled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them fail, as they did before anyone asked."""
    done = settled()
    attempts = []

    def away(*args: Any, **kwargs: Any) -> None:
        attempts.append(args)
        raise ConnectionError("away")

    for name in ("mget", "get"):
        monkeypatch.setattr(type(done.app.backend), name, away)
    done.app.conf.task_always_eager = False
    with monkeypatch.context() as patch:
        patch.setattr(done.app.backend, "store_result", lambda *args, **kwargs: None)
        lose(done)
    assert done.world.ids_told("on_failure") == IDS
    assert len(attempts) == 1 + 3
    assert done.world.finished


def test_what_ignores_its_result_is_not_looked_for(
    settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = settled(ignore_result=True)
    monkeypatch.setattr("celery_batches.backends.state_lookup._Lookup", None)
    lose(done)
    assert done.world.ids_told("on_failure") == IDS


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_terminating_one_that_is_done(settled: Any, options: Any) -> None:
    """It is done, and not revoked. Its neighbours have lost their process."""
    done = settled(**options)
    worker_state.revoked.add("id-0")
    pool = Pool()
    done.world.requests[0].terminate(pool, "TERM")
    assert pool.terminated == [(7, signal.SIGTERM)]
    done.calls["error_callback"](einfo_of(Terminated(15)))
    assert done.world.said[0] == ["ack"]
    assert done.world.ids_told("on_success") == ["id-0", "id-1"]
    assert "id-0" not in done.world.ids_told("on_failure")
    assert done.states()[0] == "SUCCESS"
    assert done.errors in ([], ["id-2"])
    assert done.world.finished


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cancelling_all_of_them(settled: Any, options: Any) -> None:
    """On a cold shutdown, what is done is acknowledged; the rest is cancelled."""
    done = settled(**options)
    pool = Pool()
    for request in done.world.requests:
        request.cancel(pool, "TERM")
    assert pool.terminated == [(7, signal.SIGTERM)]
    done.calls["error_callback"](einfo_of(Terminated(15)))
    assert [request.is_cancelled for request in done.world.requests] == [False, False, True]
    assert done.world.said[0] == ["ack"]
    assert done.world.said[2] == ([] if options else ["ack"])
    assert done.errors == []
    assert done.states()[0] == "SUCCESS"


def test_reports_that_come_after_all_are_heard_by_the_rest(settled: Any) -> None:
    """A signal need not end a process."""
    done = settled()
    done.world.requests[2].terminate(Pool(), "USR1")
    told = len(done.world.told)
    done.calls["callback"]((False, [(False, "None")] * 3, 0.1))
    assert [entry[1] for entry in done.world.told[told:]] == ["id-2"]


def test_the_process_has_ended_before_anyone_is_told(
    settled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, it could store more."""
    done = settled()
    order: list[str] = []
    monkeypatch.setattr(
        "celery_batches.worker.lost_batch.end_process", lambda pid: order.append(f"end {pid}")
    )
    original = type(done.app.backend).mget
    monkeypatch.setattr(
        type(done.app.backend),
        "mget",
        lambda self, keys: order.append("look") or original(self, keys),
    )
    time_out(done)
    assert order == ["end 7", "look"]


@pytest.mark.parametrize("away", [False, True])
def test_celery_does_not_look_again_for_each_of_them(
    settled: Any, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """From 5.7 on, it would, one after the other, even if the backend is away."""
    done = settled()
    looked: list[str] = []

    def look(self: Any, task_id: str) -> dict[str, Any]:
        looked.append(task_id)
        return {"status": "PENDING", "result": None}

    monkeypatch.setattr(type(done.app.backend), "_get_task_meta_for", look)
    if away:
        monkeypatch.setattr("celery_batches.worker.lost_batch.find_reports", lambda *args: {})
    monkeypatch.setattr(done.app.backend, "store_result", lambda *args, **kwargs: None)
    lose(done)
    assert looked == []
    assert done.world.finished


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """What the worker shares with its pool."""
    memory = bytearray(200)
    monkeypatch.setattr(records, "_records", records.Records(memory, 200))
    return memory


def noted(done: Done, memory: bytearray, *ends: End | int) -> None:
    """Its process notes that its requests have ended so."""
    record = EndRecord(memory, done.calls["args"][-1], 3)
    record.begin()
    record.note_from(0, bytes(ends))


UNSTORED: list[dict[str, Any]] = [{"ignore_result": True, **options} for options in OPTIONS]


@pytest.mark.parametrize("options", UNSTORED, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_noted_needs_no_result(
    app: Any, memory: bytearray, monkeypatch: pytest.MonkeyPatch, way: Any, options: Any
) -> None:
    """Nobody looks for one, and only the rest hears of the end."""
    done = Done(app, stored=(), **options)
    monkeypatch.setattr("celery_batches.backends.state_lookup._Lookup", None)
    noted(done, memory, End.DONE, End.FAILED, 0)
    way(done)
    world = done.world
    assert world.ids_told("on_success") == ["id-0", "id-1"]
    assert set(world.ids_told("on_failure")) <= {"id-1", "id-2"}
    assert world.said[0] == ["ack"]
    assert world.said[1] == (["reject"] if "acks_on_failure_or_timeout" in options else ["ack"])
    assert set(done.errors) <= {"id-2"}
    if world.said[2] != ["requeue"]:
        assert done.errors == ["id-2"]
    assert world.finished
    assert world.released


ENDS = [
    (End.DONE, ["ack"]),
    (End.FAILED, ["ack"]),
    (End.RETRIED, ["ack"]),
    (End.IGNORED, ["ack"]),
    (End.REJECTED, ["reject"]),
    (End.REQUEUED, ["requeue"]),
]


@pytest.mark.parametrize("stores", [False, True])
@pytest.mark.parametrize(("end", "said"), ENDS)
def test_each_end_is_told_as_what_it_is(
    app: Any, memory: bytearray, end: End, said: list[str], stores: bool
) -> None:
    """Also if it was redelivered or retried before, where its state may be of an earlier run."""
    header = {"retries": 1, "redelivered": True}
    world = RecordedJob(app, acks_late=True, ignore_result=not stores, headers=[header] * 3)
    calls = world.send()
    calls["accept_callback"](7, 0.0)
    record = EndRecord(memory, calls["args"][-1], 3)
    record.begin()
    record.note_from(0, bytes([end] * 3))
    calls["error_callback"](einfo_of(WorkerLostError("signal 9")))
    assert world.said == [said] * 3
    assert [request.is_reported for request in world.requests] == [True] * 3
    if end is not End.REJECTED:  # Celery 5.7 and newer store a failure then.
        assert [app.AsyncResult(id).state for id in IDS] == ["PENDING"] * 3
    assert world.finished


def test_the_backend_says_what_the_result_is(app: Any, memory: bytearray) -> None:
    done = Done(app, stored=("id-0", "id-1"))
    noted(done, memory, End.DONE, End.FAILED, End.DONE)
    lose(done)
    reports = {told[1]: told[2] for told in done.world.told if told[0] == "on_success"}
    assert reports["id-0"] == (False, "'result'", None)
    assert isinstance(exception_of(reports["id-1"][1]), KeyError)
    assert reports["id-2"] == (False, None, None)
    assert done.errors == []


def test_a_state_of_another_run_is_none_of_this(app: Any, memory: bytearray) -> None:
    """The call was done once, is delivered again, and has failed."""
    done = Done(app, stored=("id-0",))
    noted(done, memory, End.FAILED, 0, 0)
    lose(done)
    reports = {told[1]: told[2] for told in done.world.told if told[0] == "on_success"}
    assert list(reports) == ["id-0"]
    assert "It had failed before its process was lost" in str(exception_of(reports["id-0"][1]))


def test_a_stored_failure_that_is_not_noted_was_not_told(app: Any, memory: bytearray) -> None:
    """Whatever was stored after it: a process notes a failure before it goes on to the next."""
    done = Done(app, stored=("id-1", "id-0"))
    noted(done, memory, End.DONE, 0, 0)
    lose(done)
    assert done.errors == ["id-1", "id-2"]
    assert done.world.ids_told("on_success") == ["id-0"]


def test_a_process_that_notes_nothing_leaves_all_to_the_backend(
    app: Any, memory: bytearray
) -> None:
    """It was not forked, or it is the first of a batch that none has begun."""
    done = Done(app)
    lose(done)
    assert done.world.ids_told("on_success") == ["id-0", "id-1"]
    assert done.errors == ["id-2"]


def test_terminating_one_that_is_noted(app: Any, memory: bytearray) -> None:
    done = Done(app, stored=(), ignore_result=True, acks_late=True)
    noted(done, memory, End.DONE, 0, 0)
    worker_state.revoked.add("id-0")
    done.world.requests[0].terminate(Pool(), "TERM")
    done.calls["error_callback"](einfo_of(Terminated(15)))
    assert done.world.ids_told("on_success") == ["id-0"]
    assert "id-0" not in done.world.ids_told("on_failure")
    assert done.errors == ["id-1", "id-2"]


def test_a_record_goes_to_another_batch_when_this_one_is_reported(
    app: Any, memory: bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives on."""
    monkeypatch.setattr(records, "is_child", lambda pid: True)
    done = Done(app, stored=())
    done.calls["callback"]((False, [(False, "None")] * 3, 0.1))
    assert RecordedJob(app).send()["args"][-1] == done.calls["args"][-1]
