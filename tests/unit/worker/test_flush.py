"""Flushes: those that fail, those that a subclass extends, and those of two threads."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

import celery_batches.core.buffer
from celery_batches import Batches
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.messages import protocol_2
from kit.tasks import make_task


def test_a_flush_that_fails_is_logged_and_hurts_nobody(
    worker: BatchWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch that cannot be sent is one critical log line, and the worker goes on."""

    def broken(job: Any) -> None:
        raise OSError("no pool")

    with monkeypatch.context() as patch:
        patch.setattr(worker.consumer, "on_task_request", broken)
        for _ in range(3):
            worker.send()
    assert [r.levelname for r in caplog.records if "no pool" in r.getMessage()] == ["CRITICAL"]
    for _ in range(3):
        worker.send()
    assert worker.batches == [("size", ["id-3", "id-4", "id-5"])]


def test_a_subclass_may_extend_flush(app: Any, clock: Clock) -> None:
    """The worker flushes through the task's own flush method, which may filter and pass on."""
    seen: list[int] = []

    class Own(Batches):
        def flush(self, requests: Any) -> Any:
            seen.append(len(requests))
            return super().flush(list(requests)[:2])

    worker = BatchWorker(make_task(app, flush_every=3), clock)
    own = app.register_task(type("Mine", (Own,), {"name": "unit.own", "flush_every": 3})())
    worker.task = own
    worker.connect()
    for _ in range(3):
        worker.send()
    assert seen == [3]
    assert worker.batches == [("manual", ["id-0", "id-1"])]


def test_apply_buffer_of_0_1(app: Any, clock: Clock) -> None:
    """The older name for a flush sends the same batch, with arguments of one's own if given."""

    class Own(Batches):
        abstract = True

        def flush(self, requests: Any) -> Any:
            return self.apply_buffer(requests, (["x"],), {})

    worker = BatchWorker(make_task(app, base=Own, flush_every=3), clock)
    for _ in range(3):
        worker.send()
    (job,) = worker.consumer.sent
    assert job.body_args is not None
    assert job.body_args.fit([]) == (["x"],)
    worker.task.apply_buffer([])
    assert len(worker.consumer.sent) == 1


def _yield_at_each_line(frame: Any, event: str, arg: Any) -> Any:
    """Let another thread go first at each line of the buffer's code."""
    if frame.f_code.co_filename != celery_batches.core.buffer.__file__:
        return None
    if event == "line":
        time.sleep(0)
    return _yield_at_each_line


def test_threads_neither_lose_nor_duplicate(app: Any, clock: Clock) -> None:
    """Messages and the timer on threads of their own: each request is in exactly one batch."""
    worker = BatchWorker(make_task(app, flush_every=3, flush_interval=10), clock)
    count, threads = 60, 4
    requests = [
        worker.task.Request(protocol_2(app, f"id-{i}", worker.task.name), app=app, task=worker.task)
        for i in range(count * threads)
    ]
    start = threading.Barrier(threads + 1)
    done = threading.Event()

    def add(part: list[Any]) -> None:
        start.wait()
        for request in part:
            worker.strategy.add(request)

    def tick() -> None:
        start.wait()
        while not done.is_set():
            clock.now += 10
            for entry in worker.timer.armed:
                worker.timer.fire(entry)

    before, interval = threading.gettrace(), sys.getswitchinterval()
    threading.settrace(_yield_at_each_line)
    sys.setswitchinterval(1e-6)
    try:
        adders = [
            threading.Thread(target=add, args=(requests[i::threads],)) for i in range(threads)
        ]
        ticker = threading.Thread(target=tick)
        for thread in (*adders, ticker):
            thread.start()
        for thread in adders:
            thread.join(60)
        done.set()
        ticker.join(60)
    finally:
        threading.settrace(before)  # type: ignore[arg-type]
        sys.setswitchinterval(interval)
    worker.advance(100)
    sent = [i for _, ids in worker.batches for i in ids]
    assert len(sent) == len(set(sent)) == count * threads
    assert all(1 <= len(ids) <= 3 for _, ids in worker.batches)
    assert worker.waiting == 0
