"""`celery_batches.testing.BatchWorker`: a worker whose clock stands still until a test moves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, shared_task, signals
from celery.exceptions import ImproperlyConfigured, Reject, TaskRevokedError
from celery.worker import state as worker_state
from kombu.exceptions import EncodeError

from celery_batches import Batches
from celery_batches.testing import BatchWorker, SentCall
from kit.tasks import Body, make_task

#: Where nothing answers.
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def app(app: Celery) -> Celery:
    """An app whose broker and result backend cannot be reached."""
    app.conf.broker_url = f"amqp://{NOWHERE}"
    app.conf.result_backend = f"redis://{NOWHERE}"
    return app


@pytest.fixture
def make(app: Celery) -> Iterator[Callable[..., BatchWorker]]:
    """Make a worker with a task, and stop it in the end."""
    workers: list[BatchWorker] = []

    def make_worker(body: Body | None = None, **options: Any) -> BatchWorker:
        options = {"base": Batches, "flush_every": 3, "flush_interval": 10, **options}
        task = make_task(app, body or end, name=f"unit.task_{len(workers)}", **options)
        workers.append(BatchWorker(task))
        return workers[-1]

    yield make_worker
    for worker in workers:
        worker.stop()


def end(requests: Any) -> str:
    """End each call as its first argument says."""
    for request in requests:
        match request.args:
            case ["done", *rest]:
                request.mark_as_done(*rest)
            case ["failed", *rest]:
                request.mark_as_failure(KeyError(*rest))
            case ["retry", *rest]:
                request.retry(countdown=rest[0] if rest else 7, exc=OSError("busy"))
            case ["reject", *rest]:
                request.reject(requeue=bool(rest))
    return "returned"


def batches(worker: BatchWorker) -> list[tuple[str, list[Any]]]:
    """The trigger of each batch, and the last argument of each call in it."""
    return [(b.trigger, [request.args[-1] for request in b.requests]) for b in worker.batches]


def ends(*calls: SentCall) -> list[tuple[str, str]]:
    return [(call.state, call.delivery) for call in calls]


# When batches are flushed.


def test_a_full_batch_runs_at_once(make: Any) -> None:
    """The call that fills it has run when `send` returns, and nothing has before."""
    worker = make()
    first, second = worker.send(("done", 1)), worker.send(("done", 2))
    assert (worker.batches, worker.buffered, first.state) == ([], 2, "PENDING")
    third = worker.send(("done", 3))
    assert batches(worker) == [("size", [1, 2, 3])]
    (batch,) = worker.batches
    assert (batch.states, batch.results, batch.returned) == (["SUCCESS"] * 3, [1, 2, 3], "returned")
    assert [request.id for request in batch.requests] == [first.id, second.id, third.id]
    assert [call.result for call in (first, second, third)] == [1, 2, 3]
    assert worker.buffered == 0


@pytest.mark.parametrize("steps", [[10], [9.75, 0.25], [10 / 60] * 60])
def test_an_interval_ends_at_its_time(make: Any, steps: list[float]) -> None:
    """Not before it has passed, and then at once, however the clock was moved."""
    worker = make()
    worker.send(("done", 1))
    for seconds in steps[:-1]:
        worker.advance(seconds)
        assert worker.batches == []
    worker.advance(steps[-1])
    assert batches(worker) == [("interval", [1])]


def test_each_batch_runs_at_its_own_time(make: Any) -> None:
    """A long way of the clock is many moments, of which the body sees each."""
    seen: list[float] = []
    worker = make(lambda requests: seen.append(worker.clock.monotonic()))
    start = worker.clock.monotonic()
    worker.send()
    worker.send(countdown=5)
    worker.send(countdown=17)
    worker.advance(60)
    assert [at - start for at in seen] == pytest.approx([10, 27])
    assert worker.clock.monotonic() - start == 60


def test_the_clock_moves_only_by_hand(make: Any) -> None:
    """It neither goes on by itself nor back, and tells seconds and the date alike."""
    worker = make()
    before, date = worker.clock.monotonic(), worker.now
    worker.advance(0)
    assert (worker.clock.monotonic(), worker.now) == (before, date)
    worker.advance(90)
    assert worker.now - date == timedelta(seconds=90)
    assert worker.clock.time() == worker.now.timestamp()
    with pytest.raises(ValueError, match="does not go back"):
        worker.advance(-1)


def test_an_option_that_changes_takes_effect(make: Any) -> None:
    """As in a worker that runs, the options are read when they are used."""
    worker = make()
    worker.send(("done", 1))
    worker.task.flush_every = 2
    worker.send(("done", 2))
    assert batches(worker) == [("size", [1, 2])]


def test_flush_is_the_one_of_the_task(make: Any) -> None:
    """An override of `flush` gets the requests of the worker, and may leave some out."""

    class Odd(Batches):
        abstract = True

        def flush(self, requests: Any) -> Any:
            return super().flush([request for request in requests if request.args[1] % 2])

    worker = make(base=Odd)
    calls = [worker.send(("done", n)) for n in (1, 2, 3)]
    assert batches(worker) == [("manual", [1, 3])]
    assert ends(*calls) == [
        *(("SUCCESS", "acknowledged"), ("PENDING", "acknowledged"), ("SUCCESS", "acknowledged")),
    ]


def test_a_flush_that_raises_fails_its_calls(make: Any) -> None:
    """What the main process ends reaches the call too, with its exception."""

    class Broken(Batches):
        abstract = True

        def flush(self, requests: Any) -> Any:
            raise LookupError("no way")

    worker = make(base=Broken, flush_every=1)
    call = worker.send(("done", 1))
    assert ends(call) == [("FAILURE", "acknowledged")]
    assert isinstance(call.exception, LookupError)
    assert worker.batches == []


# How calls end.


def test_each_call_has_its_state_and_its_message(make: Any) -> None:
    """With late acknowledgement, the broker is told of each message how its call has ended."""
    ways = [("done", 1), ("failed", 2), ("reject",), ("reject", True), ("retry",), ("nothing",)]
    worker = make(acks_late=True, flush_every=6)
    calls = [worker.send(way) for way in ways]
    assert ends(*calls) == [
        ("SUCCESS", "acknowledged"),
        ("FAILURE", "acknowledged"),
        ("REJECTED", "rejected"),
        ("REJECTED", "requeued"),
        ("RETRY", "unacknowledged"),  # The message of the retry.
        ("PENDING", "acknowledged"),
    ]
    assert [type(call.exception) for call in calls] == [
        *(type(None), KeyError, Reject, Reject, OSError, type(None))
    ]


@pytest.mark.parametrize(("late", "then"), [(False, "acknowledged"), (True, "unacknowledged")])
def test_messages_are_acknowledged_when_the_task_says(make: Any, late: bool, then: str) -> None:
    """Before the body runs, or after it with ``acks_late``."""
    said: list[str] = []
    worker = make(lambda requests: said.append(call.delivery), acks_late=late)
    call = worker.send()
    worker.advance(10)
    assert said == [then]
    assert call.delivery == "acknowledged"


def test_a_retry_comes_back_at_its_time(make: Any) -> None:
    """Under its own id, after its countdown, and then it waits for its batch to fill."""
    worker = make(max_retries=1)
    call = worker.send(("retry", 7), headers={"tenant": "acme"})
    worker.advance(10)
    assert (call.state, worker.buffered) == ("RETRY", 0)
    worker.advance(6.5)
    assert worker.buffered == 0
    worker.advance(0.5)
    assert (worker.buffered, len(worker.batches)) == (1, 1)
    worker.advance(10)
    (again,) = worker.batches[1].requests
    assert (again.id, again.retries, again.headers) == (call.id, 1, {"tenant": "acme"})
    assert call.state == "FAILURE"
    assert isinstance(call.exception, OSError)
    worker.advance(1000)
    assert len(worker.batches) == 2


def test_a_retry_without_delay_joins_the_buffer_at_once(make: Any) -> None:
    """It waits there with the calls that come after it."""
    worker = make()
    calls = [worker.send(("retry", 0)) for _ in range(2)]
    worker.send(("done", 0))
    assert worker.buffered == 2
    worker.send(("done", 0))
    assert [batch.trigger for batch in worker.batches] == ["size", "size"]
    assert {call.id for call in calls} < {request.id for request in worker.batches[1].requests}


def test_a_body_that_raises_fails_its_batch(make: Any) -> None:
    """The exception is that of the batch, and of each call without an outcome."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        raise ValueError("boom")

    worker = make(body)
    first, *others = [worker.send() for _ in range(3)]
    (batch,) = worker.batches
    assert repr(batch.exception) == "ValueError('boom')"
    assert first.state == "SUCCESS"
    assert [call.exception for call in others] == [batch.exception] * 2


def test_what_a_handler_raises_reaches_the_test(make: Any) -> None:
    """From `send` if the call fills a batch, from `advance` otherwise."""

    class Handled(Batches):
        abstract = True

        def on_failure(self, *_: Any) -> None:
            raise RuntimeError("handler")

    worker = make(base=Handled, flush_every=2, acks_late=True)
    call = worker.send(("failed", 1))
    with pytest.raises(RuntimeError, match="handler"):
        worker.advance(10)
    assert ends(call) == [("FAILURE", "acknowledged")]
    worker.send(("done", 1))
    with pytest.raises(RuntimeError, match="handler"):
        worker.send(("failed", 1))
    worker.advance(10)  # Once only.


def test_marks_by_the_backend_count(make: Any, app: Celery) -> None:
    """The way of 0.11, by the backend of the app or that of the task; nothing is stored."""

    def body(requests: Any) -> None:
        worker.task.backend.mark_as_failure("of another task", KeyError(3))
        app.backend.mark_as_done(requests[0].id, 1, request=requests[0])
        worker.task.backend.mark_as_failure(requests[1].id, KeyError(2), request=requests[1])

    worker = make(body, flush_every=2)
    calls = [worker.send(), worker.send()]
    assert [call.state for call in calls] == ["SUCCESS", "FAILURE"]


def test_nothing_is_sent_or_stored(make: Any) -> None:
    """Neither a link nor a chord part, a state, a retry or a revocation needs a server."""
    worker = make(track_started=True, flush_every=5)
    link = worker.task.s("link")
    options = {"link": link, "link_error": link, "chord": link, "chain": [link], "expires": 60}
    for way in ("done", "failed", "retry", "nothing"):
        worker.send((way,), **options)
    worker.advance(10)
    assert worker.batches[0].states == ["SUCCESS", "FAILURE", "RETRY", "PENDING"]
    assert worker.batches[0].requests[0].callbacks[0]["args"] == ["link"]
    late = worker.send(("done",), **{**options, "expires": worker.now - timedelta(seconds=1)})
    worker.advance(60)
    assert late.state == "REVOKED"


# What a call is.


def test_a_call_has_the_options_of_apply_async(make: Any) -> None:
    """The body finds them where it finds them in a worker."""
    worker = make(flush_every=1, time_limit=60)
    options = {"task_id": "the-id", "headers": {"tenant": "acme"}, "priority": 4}
    worker.send(["done", 1], {"key": (2,)}, **options)
    (request,) = worker.batches[0].requests
    assert (request.id, request.name) == ("the-id", "unit.task_0")
    assert (request.args, request.kwargs) == (["done", 1], {"key": [2]})
    assert (request.get("tenant"), request.time_limit) == ("acme", 60)
    assert (request.delivery_info or {})["priority"] == 4
    assert request.redelivered is False


def test_what_cannot_be_sent_is_refused(make: Any, app: Celery) -> None:
    """By the serializer of the task, and by Celery's own check of the arguments."""
    worker = make()
    with pytest.raises(EncodeError):
        worker.send((object(),))
    with pytest.raises(TypeError, match="list or tuple"):
        worker.send("done")
    assert worker.buffered == 0
    app.conf.accept_content = ["json", "pickle"]
    pickled = make(serializer="pickle", flush_every=1)
    pickled.send(({1, 2},))
    assert pickled.batches[0].requests[0].args == ({1, 2},)


def test_an_eta_is_a_time_of_the_workers_clock(make: Any) -> None:
    """A call joins the buffer at its ETA or after its countdown, neither before nor later."""
    worker = make()
    worker.advance(5000)
    calls = [worker.send(countdown=60), worker.send(eta=worker.now + timedelta(seconds=60))]
    worker.advance(59.5)
    assert worker.buffered == 0
    worker.advance(0.5)
    assert worker.buffered == 2
    worker.advance(9.5)
    assert worker.batches == []
    worker.advance(0.5)
    assert [request.id for request in worker.batches[0].requests] == [call.id for call in calls]


def test_a_call_expires_by_the_workers_clock(make: Any) -> None:
    """Before its ETA, or on receipt; those in the buffer run before."""
    worker = make()
    start = worker.now
    in_time = [worker.send(expires=10.5), worker.send(expires=5)]
    later = worker.send(countdown=30, expires=start + timedelta(seconds=20))
    too_late = worker.send(expires=start - timedelta(seconds=1))
    assert too_late.state == "REVOKED"
    worker.advance(4)
    (batch,) = worker.batches
    assert batch.trigger == "expires"
    assert [request.id for request in batch.requests] == [call.id for call in in_time]
    worker.advance(36)
    for call in (later, too_late):
        assert ends(call) == [("REVOKED", "acknowledged")]
        assert isinstance(call.exception, TaskRevokedError)
    assert len(worker.batches) == 1


def test_a_revoked_call_does_not_run(make: Any) -> None:
    """In the buffer, before its ETA, or before it is sent; its neighbours run."""
    revoked: list[str] = []

    def on_revoked(request: Any, **_: Any) -> None:
        revoked.append(request.id)

    signals.task_revoked.connect(on_revoked)
    worker = make()
    calls = [worker.send(), worker.send(countdown=5)]
    fine = worker.send(("done", 1))
    for call in calls:
        worker.revoke(call)
    worker.revoke("never-sent")
    calls.append(worker.send(task_id="never-sent"))
    worker.advance(30)
    assert ends(*calls) == [("REVOKED", "acknowledged")] * 3
    assert sorted(revoked) == sorted(call.id for call in calls)
    assert batches(worker) == [("size", [1])]
    assert ends(fine) == [("SUCCESS", "acknowledged")]


def test_a_rate_limit_counts_batches(make: Any) -> None:
    """The first batch runs, and each other one when the rate of the task allows it."""
    worker = make(rate_limit="6/m", flush_every=2, flush_interval=60)
    for n in range(6):
        worker.send(("done", n))
    assert batches(worker) == [("size", [0, 1])]
    worker.advance(9.5)
    assert len(worker.batches) == 1
    worker.advance(0.5)
    assert len(worker.batches) == 2
    worker.advance(10)
    assert batches(worker)[2:] == [("size", [4, 5])]


# Around it.


def test_a_stopped_worker_runs_nothing_more(make: Any) -> None:
    """What is buffered and what waits for its ETA goes back to the broker, and does not run."""
    worker = make(acks_late=True)
    calls = [worker.send(("done", 1)), worker.send(("done", 2), countdown=5)]
    worker.stop()
    worker.stop()
    worker.advance(1000)
    assert worker.batches == []
    assert ends(*calls) == [("PENDING", "unacknowledged")] * 2
    with pytest.raises(RuntimeError, match="is stopped"):
        worker.send()


def test_nothing_is_left_behind(make: Any, app: Celery) -> None:
    """The task and what Celery knows of requests are as they were, also when a body fails."""
    task = app.task(base=Batches, name="unit.left", flush_every=2, lazy=False)(end)
    BatchWorker(task).stop()  # The first strategy of a task notes its body.
    before = dict(vars(task))
    with BatchWorker(task) as worker:
        worker.send(("failed",), task_id="a", expires=1)
        worker.send(countdown=60)
        worker.revoke("b")
        worker.send(task_id="b")
        worker.advance(30)
        worker.send()
    assert vars(task) == before
    assert task.backend is app.backend
    assert not worker_state.requests
    assert not worker_state.reserved_requests
    assert not getattr(worker_state, "scheduled_requests", ())
    assert not {"a", "b"} & set(worker_state.revoked)
    with BatchWorker(task) as worker:
        assert [worker.send(("done",), task_id=task_id).id for task_id in "ab"] == ["a", "b"]
        assert worker.batches[0].states == ["SUCCESS", "SUCCESS"]


def test_a_shared_task_is_that_of_its_app(app: Celery) -> None:
    """The worker keeps it, whatever app is the current one later."""

    @shared_task(base=Batches, name="unit.shared", flush_every=1)
    def shared(requests: Any) -> None:
        requests[0].mark_as_done(shared.app.main)

    with BatchWorker(shared) as worker:
        other = Celery("other", set_as_current=False)
        other.set_current()
        assert worker.send().state == "SUCCESS"
        assert worker.task.app is app


def test_other_tasks_are_refused(app: Celery) -> None:
    """An ordinary task has no batches; an option that cannot work is refused as in a worker."""
    app.conf.task_annotations = {"unit.bad": {"flush_every": 0}}

    @app.task(lazy=False)
    def ordinary() -> None: ...

    with pytest.raises(TypeError, match="another base than Batches"):
        BatchWorker(ordinary)
    task = app.task(base=Batches, name="unit.bad", lazy=True)(end)
    with pytest.raises(ImproperlyConfigured):
        BatchWorker(task)


def test_the_batch_in_the_body(make: Any) -> None:
    """`self.batch` has waited by the clock of the test."""
    seen: list[Any] = []
    worker = make(lambda self, requests: seen.append(self.batch), bind=True)
    worker.send(["a"])
    worker.advance(4)
    worker.send(["b"])
    worker.advance(6)
    (info,) = seen
    assert (info.trigger, info.size, info.waited) == ("interval", 2, 10)
