"""`self.batch`, the batch that runs, and `self.request.retries`."""

from __future__ import annotations

import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from celery import signals

from celery_batches import Batches
from celery_batches.core.batch_info import BatchInfo, FlushInfo
from celery_batches.pool.trace import trace_batch
from celery_batches.testing import run_batch
from kit.tracing import World

FLUSH = FlushInfo(waited=2.5, sent_at=100.0, key=("k", 1), weight=7.0)


def run(world: World, flush: FlushInfo | None = FLUSH) -> None:
    trace_batch(
        *(world.task.name, "batch", world.requests(), "interval", "w@h"),
        flush=pickle.loads(pickle.dumps(flush)),
    )


@pytest.fixture
def at_103(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_batches.pool.run.monotonic", lambda: 103.0)


def seen_by(world: World, look: Any, **options: Any) -> list[Any]:
    seen: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        seen.append(look(self, requests))

    world.define(body, bind=True, **options)
    run(world)
    return seen


@pytest.mark.usefixtures("at_103")
def test_the_batch_in_the_body(world: World) -> None:
    """What the main process says of it, and how long its oldest request has waited by now."""
    (info,) = seen_by(world, lambda self, requests: self.batch)
    assert info == BatchInfo(
        id="batch", trigger="interval", size=3, waited=5.5, key=("k", 1), weight=7.0
    )
    with pytest.raises(AttributeError):
        info.size = 4


@pytest.mark.usefixtures("at_103")
def test_the_data_of_the_log_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It says what `self.batch` says. The text of the line stays as it is."""
    world.define(lambda requests: None)
    run(world)
    (record,) = [
        r for r in caplog.records if r.getMessage().startswith("Batch unit.click[batch] of")
    ]
    data = {name: record.data[name] for name in ("id", "trigger", "size", "waited")}
    assert data == {"id": "batch", "trigger": "interval", "size": 3, "waited": 5.5}


def test_it_begins_once(world: World) -> None:
    """It does not change while the body runs."""
    ((first, second),) = seen_by(world, lambda self, requests: (self.batch, self.batch))
    assert first is second


@pytest.mark.parametrize("flush", [None, FlushInfo()])
def test_a_batch_that_nobody_has_flushed(world: World, flush: Any) -> None:
    """It has not waited."""
    seen: list[Any] = []
    world.define(lambda self, requests: seen.append(self.batch), bind=True)
    run(world, flush)
    assert seen == [BatchInfo(id="batch", trigger="interval", size=3)]
    assert seen[0].waited == 0.0


def test_the_clock_of_another_machine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the clocks of processes differ, a batch has not waited less than nothing in the pool."""
    monkeypatch.setattr("celery_batches.pool.run.monotonic", lambda: 1.0)
    (info,) = seen_by(world, lambda self, requests: self.batch)
    assert info.waited == 2.5


def test_the_size_counts_duplicates(world: World) -> None:
    """They belong to the batch, although the body does not get them."""
    (seen,) = seen_by(
        world,
        lambda self, requests: (self.batch.size, len(requests)),
        unique_key=lambda request: 0,
    )
    assert seen == (3, 1)


def test_in_an_eager_call_and_in_a_test(world: World) -> None:
    """It is a batch by hand, as the log says."""
    seen: list[Any] = []
    task = world.define(lambda self, requests: seen.append(self.batch), bind=True)
    task.apply((1,), task_id="call")
    run_batch(task, [(1,), (2,)])
    assert seen[0] == BatchInfo(id="call", trigger="manual", size=1)
    assert seen[1] == BatchInfo(id=seen[1].id, trigger="manual", size=2)


def test_inside_the_context_of_a_request(world: World) -> None:
    """Also in a helper thread of the body, where it is not known otherwise."""

    def look(self: Any, requests: Any) -> Any:
        def of_request() -> Any:
            with requests[1].context():
                return self.batch

        def outside() -> Any:
            with pytest.raises(AttributeError, match=r"inside `with request.context\(\)`"):
                self.batch  # noqa: B018

        with ThreadPoolExecutor(1) as threads:
            threads.submit(outside).result()
            return self.batch, of_request(), threads.submit(of_request).result()

    ((info, *others),) = seen_by(world, look)
    assert others == [info, info]


def test_in_handlers_and_signals(world: World) -> None:
    """While one request is the current one, the batch is the same."""
    seen: list[Any] = []

    class Handled(Batches):
        abstract = True

        def on_success(self, *_: Any) -> None:
            seen.append(("on_success", self.request.id, self.batch.id))

    def receive(task: Any, **_: Any) -> None:
        seen.append(("task_postrun", task.request.id, task.batch.id))

    signals.task_postrun.connect(receive)
    try:
        world.define(lambda requests: requests[0].mark_as_done(), base=Handled)
        run(world)
    finally:
        signals.task_postrun.disconnect(receive)
    assert seen == [
        *(("on_success", f"id-{n}", "batch") for n in range(3)),
        ("task_postrun", "batch", "batch"),
    ]


def test_a_batch_inside_of_another_one(world: World) -> None:
    """The innermost of the task is meant; that of another task stays."""
    seen: list[Any] = []
    outer = world.define(lambda requests: inner.apply((1,), task_id="inner"))

    @world.app.task(base=Batches, name="unit.inner", bind=True)
    def inner(self: Any, requests: Any) -> None:
        seen.append((self.batch.id, outer.batch.id))

    run(world)
    assert seen == [("inner", "batch")]


def test_outside_of_a_body(world: World) -> None:
    """An error says where it is there. What looks at all attributes of a task is not disturbed."""
    task = world.define(lambda requests: None)
    with pytest.raises(AttributeError) as error:
        task.batch  # noqa: B018
    assert str(error.value) == (
        "Task 'unit.click': self.batch is the batch that runs, and no batch of this task runs in "
        "this thread. In a helper thread of the body, use it inside `with request.context()`"
    )
    assert error.value.name == "batch"
    assert not hasattr(task, "batch")
    inspect.getmembers(task)


def test_a_task_with_an_attribute_of_that_name(world: World) -> None:
    """It is the task's own."""
    assert world.define(lambda requests: None, batch="mine").batch == "mine"


#: A message may claim anything.
COUNTS = [((0, 0, 0), 0), ((1, 4, 2), 4), ((None, "5", 3), 3), ((10**30, 0, 0), 10_000)]


@pytest.mark.parametrize(("counts", "most"), COUNTS)
def test_the_retries_of_the_batch(world: World, counts: Any, most: int) -> None:
    """They are the most of any request, so that a countdown made of them is long enough."""
    seen: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        seen.append((self.request.retries, [request.retries for request in requests]))

    world.define(body, bind=True)
    requests = world.requests()
    for request, count in zip(requests, counts, strict=True):
        request.request_dict = {**(request.request_dict or {}), "retries": count}
    trace_batch(world.task.name, "batch", requests, "size", "w@h")
    assert seen == [(most, list(counts))]


def test_a_countdown_of_the_body_grows_with_them(sending: World) -> None:
    """And each request has the limit of its own count."""

    def body(self: Any, requests: Any) -> None:
        raise self.retry(countdown=2**self.request.retries, max_retries=3)

    sending.define(body, bind=True)
    sending.run(None, {"retries": 1}, {"retries": 3}, {})
    assert [(sent["id"], sent["retries"]) for _, sent in sending.sent] == [("id-0", 2), ("id-2", 1)]
    assert sending.states == ["RETRY", "FAILURE", "RETRY"]
    when = [sent["eta"] for _, sent in sending.sent]
    assert when[0][:16] == when[1][:16]


def test_a_message_that_claims_many_retries_does_not_stop_its_batch(sending: World) -> None:
    """The backoff of `autoretry_for` is a power of them."""

    def body(requests: Any) -> None:
        raise KeyError("again")

    options = {"autoretry_for": (KeyError,), "retry_backoff": True, "retry_backoff_max": 10}
    sending.define(body, **options)
    sending.run(None, {"retries": 10**30}, {})
    assert sending.states == ["FAILURE", "RETRY", "RETRY"]


def test_what_is_sent_is_plain(world: World) -> None:
    """It is pickled once for each batch."""
    assert pickle.loads(pickle.dumps(FLUSH)) == FLUSH
    assert replace(FLUSH, key=None).key is None


def test_a_batch_inside_of_one_of_its_own_task(world: World) -> None:
    """The innermost counts, and then the outer one again."""
    seen: list[str] = []

    def body(self: Any, requests: Any) -> None:
        if self.batch.id == "batch":
            self.apply((1,), task_id="inner")
        seen.append(self.batch.id)

    world.define(body, bind=True)
    run(world)
    assert seen == ["inner", "batch"]
