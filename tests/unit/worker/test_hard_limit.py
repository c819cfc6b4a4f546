"""The hard time limit ends the body, and leaves time for what follows."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery.exceptions import TimeLimitExceeded

from celery_batches.core.end_record import End, EndRecord
from celery_batches.errors import exception_of
from celery_batches.worker import records
from celery_batches.worker.hard_limit import HardLimit
from kit.jobs import RecordedJob
from kit.messages import IDS
from kit.pool import einfo_of


class Timer:
    """The worker's timer, whose entries a test calls."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def call_at(self, eta: float, fun: Any, args: Any = ()) -> Any:
        self.entries.append(fun)
        return fun

    def cancel(self, entry: Any) -> None:
        self.entries.remove(entry)


class Billiards:
    """Billiard's pool, with an event loop."""

    def __init__(self, world: RecordedJob) -> None:
        self.world = world
        self.ended: list[object] = []

    def apply_async(self) -> None:
        """Celery's pool names this one."""

    def on_hard_timeout(self, handle: object) -> None:
        """Tell of the limit as billiard does, with the limit that it was given."""
        self.ended.append(handle)
        (call,) = self.world.pool.calls
        seconds = call.options["timeout"]
        call.options["error_callback"](einfo_of(TimeLimitExceeded(seconds)))
        call.options["timeout_callback"](False, seconds)


class Limited:
    """A batch of three with a hard time limit of 5 seconds, in a pool of processes."""

    def __init__(self, app: Any, memory: Any, **options: Any) -> None:
        self.timer = Timer()
        self.world = RecordedJob(app, time_limit=5, acks_late=True, **options)
        self.world.job._timer = self.timer
        self.billiards = Billiards(self.world)
        self.world.pool.on_apply = self.billiards.apply_async
        self.calls = self.world.send()
        self.calls["accept_callback"](7, 0.0)
        self.record = EndRecord(memory, self.calls["args"][-1] or 0, 3)
        self.record.begin()

    def reach_the_limit(self) -> None:
        (fire,) = self.timer.entries
        fire()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    memory = bytearray(200)
    monkeypatch.setattr(records, "_records", records.Records(memory, 200))
    return memory


def test_at_its_limit_a_body_is_ended(app: Any, memory: bytearray) -> None:
    limited = Limited(app, memory)
    assert limited.calls["timeout"] == 10
    limited.reach_the_limit()
    assert limited.billiards.ended == [limited.world.pool.handle]
    results = [app.AsyncResult(id).result for id in IDS]
    assert [str(each) for each in results] == [str(TimeLimitExceeded(5))] * 3
    assert limited.world.finished
    assert limited.timer.entries == []


def test_what_follows_the_body_goes_on(
    app: Any, memory: bytearray, caplog: pytest.LogCaptureFixture
) -> None:
    limited = Limited(app, memory)
    limited.record.end_body()
    limited.reach_the_limit()
    assert limited.billiards.ended == []
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "hard time limit (5s) exceeded after its body. Until 10s" in line
    limited.calls["callback"]((False, [(False, "None")] * 3, 0.1))
    assert limited.world.said == [["ack"]] * 3
    assert limited.world.ids_told("on_timeout") == []


def test_what_follows_takes_no_longer_than_the_limit_again(app: Any, memory: bytearray) -> None:
    """The pool ends it then. The error names the limit of the task."""
    limited = Limited(app, memory)
    limited.record.end_body()
    limited.record.note(0, End.DONE)
    limited.reach_the_limit()
    limited.billiards.on_hard_timeout(None)
    assert limited.world.ids_told("on_success") == ["id-0"]
    assert str(app.AsyncResult("id-2").result) == str(TimeLimitExceeded(5))
    told = limited.world.told
    assert {each[3] for each in told if each[0] == "on_timeout"} == {5}
    failures = [each[2] for each in told if each[0] == "on_failure"]
    assert {str(exception_of(each)) for each in failures} == {str(TimeLimitExceeded(5))}


def test_a_batch_that_has_ended_has_no_limit(app: Any, memory: bytearray) -> None:
    limited = Limited(app, memory)
    limited.calls["callback"]((False, [(False, "None")] * 3, 0.1))
    assert limited.timer.entries == []


def test_without_a_record_the_pool_sees_to_the_limit(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know whether the body has ended."""
    monkeypatch.setattr(records, "_records", None)
    monkeypatch.setattr(records, "shared_memory", lambda: None)
    limited = Limited(app, bytearray(200))
    assert limited.calls["timeout"] == 5
    assert limited.timer.entries == []


@pytest.mark.parametrize("seconds", [None, 0, 5])
def test_other_pools_see_to_the_limit(seconds: float | None) -> None:
    class Green:
        def apply_async(self, target: Any, args: Any = (), **options: Any) -> None: ...

    class Processes(Green):
        on_apply = Billiards(None).apply_async  # type: ignore[arg-type]

    assert HardLimit.of(Green(), seconds, Timer()) is None
    assert HardLimit.of(Processes(), seconds, None) is None
    limit = HardLimit.of(Processes(), seconds, Timer())
    assert limit is None if not seconds else limit is not None
