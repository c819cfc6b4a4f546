"""From a message to the pool, with a clock and a timer that are moved by hand."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import bootsteps, signals
from celery.exceptions import InvalidTaskError
from celery.worker import state as worker_state
from celery.worker.request import Request
from kombu.asynchronous.timer import to_timestamp
from unit.support import PROTOCOLS, Clock, FakeConsumer, make_message, protocol_2

import celery_batches.core.buffer
from celery_batches import Batches
from celery_batches.worker.bootstep import BatchesStep
from celery_batches.worker.strategy import BatchStrategy


class Worker:
    """A batch task in a worker whose clock stands still."""

    def __init__(self, app: Any, clock: Clock, **options: Any) -> None:
        self.app = app
        self.clock = clock

        @app.task(base=Batches, name="unit.click", **options)
        def click(requests: Any) -> None: ...

        self.task = click
        self.consumer = FakeConsumer(app)
        self.count = 0
        self.connect()

    def connect(self) -> BatchStrategy:
        handler = self.task.Strategy(self.task, self.app, self.consumer)
        self.consumer.strategies[self.task.name] = handler
        self.strategy: BatchStrategy = handler.__self__
        return self.strategy

    def receive(self, make: Any = protocol_2, **options: Any) -> Any:
        message = make(self.app, f"id-{self.count}", self.task.name, [self.count], **options)
        self.count += 1
        return self.handle(message)

    def handle(self, message: Any, *, acks: Any = None) -> Any:
        body = None if "task" in message.headers else message.payload
        self.strategy.on_message(
            *(message, body, message.ack_log_error, message.reject_log_error), acks or []
        )
        return message

    @property
    def timer(self) -> Any:
        return self.consumer.timer

    @property
    def waiting(self) -> int:
        return len(self.strategy._buffer)

    @property
    def batches(self) -> list[tuple[str, list[str]]]:
        return [(job.trigger, [r.id for r in job.requests]) for job in self.consumer.sent]

    def let_time_pass(self, seconds: float) -> None:
        """Move the clock on, and fire the timer for all that comes due, as it comes due."""
        end = self.clock.now + seconds
        while due := [e for e in self.timer.armed if e.eta <= end]:
            entry = min(due, key=lambda e: e.eta)
            self.clock.now = max(self.clock.now, entry.eta)
            self.timer.fire(entry)
        self.clock.now = end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("celery_batches.worker.strategy.monotonic", clock)
    return clock


@pytest.fixture
def worker(app: Any, clock: Clock) -> Worker:
    return Worker(app, clock, flush_every=3, flush_interval=10)


@pytest.fixture
def received() -> Iterator[list[str]]:
    ids: list[str] = []

    def receive(request: Any = None, **_: Any) -> None:
        ids.append(request.id)

    signals.task_received.connect(receive, weak=False)
    yield ids
    signals.task_received.disconnect(receive)


@pytest.mark.parametrize("make", PROTOCOLS)
def test_a_full_batch_is_sent_at_once(worker: Worker, make: Any, received: list[str]) -> None:
    """The message that fills a batch sends it, in order, whatever the protocol."""
    worker.receive(make)
    worker.receive(make)
    assert worker.batches == []
    worker.receive(make)
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]
    assert received == ["id-0", "id-1", "id-2"]
    assert all(isinstance(r, Request) for r in worker.consumer.sent[0].requests)


def test_protocols_mix_in_one_batch(worker: Worker) -> None:
    """Calls from clients of different ages share a batch."""
    for make in PROTOCOLS:
        worker.receive(make)
    ((trigger, ids),) = worker.batches
    assert (trigger, len(ids)) == ("size", 3)


def test_a_part_filled_batch_is_sent_when_the_oldest_has_waited(worker: Worker) -> None:
    """After the interval what is there is sent, not before."""
    worker.receive()
    worker.let_time_pass(6)
    worker.receive()
    worker.let_time_pass(3.999)
    assert worker.batches == []
    worker.let_time_pass(0.001)
    assert worker.batches == [("interval", ["id-0", "id-1"])]
    assert worker.timer.armed == []


def test_a_flush_by_size_restarts_the_clock(worker: Worker) -> None:
    """What comes after a full batch waits for its own interval, not the rest of the old one."""
    worker.receive()
    worker.let_time_pass(9)
    worker.receive()
    worker.receive()
    worker.receive()
    worker.let_time_pass(9.999)
    assert len(worker.batches) == 1
    worker.let_time_pass(0.001)
    assert worker.batches[1:] == [("interval", ["id-3"])]


def test_never_more_than_one_timer(worker: Worker) -> None:
    """However many requests and batches, there is one timer for the buffer at most."""
    for _ in range(20):
        worker.receive()
        assert len(worker.timer.armed) <= 1
        worker.let_time_pass(2.5)
        assert len(worker.timer.armed) <= 1
    worker.let_time_pass(30)
    assert worker.waiting == 0
    assert worker.timer.armed == []
    assert sum(len(ids) for _, ids in worker.batches) == 20


def test_a_stale_timer_does_nothing(worker: Worker) -> None:
    """A timer that fires although it is over neither flushes nor arms anything."""
    worker.receive()
    (stale,) = worker.timer.armed
    worker.let_time_pass(10)
    worker.receive()
    armed = list(worker.timer.armed)
    worker.timer.fire(stale)
    assert len(worker.batches) == 1
    assert worker.waiting == 1
    assert worker.timer.armed == armed


def test_retire_drops_and_cancels(worker: Worker) -> None:
    """A lost connection's requests are dropped unanswered, and their timer is cancelled."""
    messages = [worker.receive(), worker.receive()]
    (entry,) = worker.timer.armed
    assert len(worker_state.reserved_requests) == 2
    assert len(worker.strategy.retire()) == 2
    assert worker.timer.armed == []
    assert worker.strategy.retire() == []
    assert not worker_state.reserved_requests
    worker.clock.now += 100
    worker.timer.fire(entry)
    assert worker.batches == []
    assert [message.channel.said for message in messages] == [[], []]
    assert worker.consumer.qos.total == 4


def test_nothing_enters_a_retired_strategy(worker: Worker) -> None:
    """A request that comes ready after the connection was lost is dropped: it will come again."""
    worker.strategy.retire()
    worker.receive()
    assert worker.waiting == 0
    assert worker.timer.armed == []
    assert not worker_state.reserved_requests


def test_a_reconnect_starts_anew(worker: Worker) -> None:
    """On a new connection the old buffer is dropped: the broker delivers its messages again."""
    old = worker.strategy
    worker.receive()
    worker.receive()
    worker.consumer.connection = object()
    worker.connect()
    assert len(old._buffer) == 0
    assert worker.waiting == 0
    assert worker.timer.armed == []
    worker.receive()
    worker.let_time_pass(10)
    assert worker.batches == [("interval", ["id-2"])]


def test_a_reload_keeps_what_is_waiting(worker: Worker) -> None:
    """Strategies that are renewed on the same connection lose no request."""
    worker.receive()
    worker.receive()
    worker.connect()
    assert len(worker.timer.armed) == 1
    assert len(worker_state.reserved_requests) == 2
    assert worker.consumer.qos.total == 4 + 3, "the room for a batch is still there"
    worker.receive()
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]
    assert worker.strategy.task.flush_every == 3


def test_two_tasks_do_not_share_a_buffer(app: Any, clock: Clock, worker: Worker) -> None:
    """Each batch task has a buffer of its own."""

    @app.task(base=Batches, name="unit.other", flush_every=2)
    def other(requests: Any) -> None: ...

    handler = other.Strategy(other, app, worker.consumer)
    worker.consumer.strategies[other.name] = handler
    worker.receive()
    message = protocol_2(app, "other", other.name)
    handler(message, None, message.ack_log_error, message.reject_log_error, [])
    worker.receive()
    assert worker.batches == []
    assert (worker.waiting, len(handler.__self__._buffer)) == (2, 1)


HEADERS = {"task": "unit.click", "id": "1"}


@pytest.mark.parametrize(
    "payload",
    [None, [], 5, "text", [[], {}], ["args", {}, {}], [[], [], {}], [[], {}, 5], {"args": 5}],
    ids=repr,
)
def test_nonsense_in_the_body_is_refused(worker: Worker, payload: Any) -> None:
    """A body that is no call raises what Celery rejects it for, and hurts no neighbour."""
    worker.receive()
    with pytest.raises(InvalidTaskError):
        worker.handle(make_message(payload, HEADERS))
    worker.receive()
    worker.receive()
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]


@pytest.mark.parametrize(
    "headers",
    [
        *({"eta": "tomorrow"}, {"eta": 5}, {"eta": []}, {"expires": "never"}, {"expires": {}}),
        *({"eta": {"a": 1}}, {"id": None, "eta": "x"}, {"id": []}),
    ],
    ids=repr,
)
def test_nonsense_in_the_headers_is_refused(worker: Worker, headers: Any) -> None:
    """Headers that cannot be read raise what Celery rejects it for, and hurt no neighbour."""
    worker.receive()
    with pytest.raises(InvalidTaskError):
        worker.handle(make_message([[], {}, {}], {**HEADERS, **headers}))
    assert worker.waiting == 1


def test_a_rejected_request_never_enters_the_buffer(worker: Worker) -> None:
    """A time that Celery itself rejects the call for does not make it run as well."""
    message = make_message([[], {}, {}], {**HEADERS, "eta": "0001-01-01T00:00:00+00:00"})
    worker.handle(message)
    if message.channel.said:
        assert message.channel.said == [("reject", "tag")]
        assert worker.waiting == 0
    request = Request(
        protocol_2(worker.app, "x", worker.task.name), app=worker.app, task=worker.task
    )
    request.acknowledged = True
    before = worker.waiting
    worker_state.task_reserved(request)
    worker.strategy.add(request)
    assert worker.waiting == before
    assert request.id not in worker_state.requests
    assert request not in worker_state.reserved_requests


def test_an_eta_is_the_timers(worker: Worker) -> None:
    """A call with a countdown waits in the worker's timer, in sight of `inspect scheduled`."""
    worker.receive(countdown=36_000)
    (entry,) = worker.timer.armed
    assert isinstance(entry.args[0], Request)
    assert entry.args[0].id == "id-0"
    assert entry.eta == pytest.approx(to_timestamp(entry.args[0].eta), abs=600)
    assert worker.waiting == 0


def test_an_eta_counts_in_prefetch_until_it_is_due(worker: Worker) -> None:
    """What waits for its ETA is charged as Celery does: one more until it is ready."""
    worker.receive(countdown=60)
    assert worker.consumer.qos.total == 4 + 1
    (entry,) = worker.timer.armed
    worker.timer.fire(entry)
    assert worker.consumer.qos.total == 4 + 3
    assert worker.waiting == 1


def test_the_interval_of_an_eta_starts_when_it_is_ready(worker: Worker) -> None:
    """A call with an ETA joins the buffer at its ETA and waits the interval from there."""
    worker.receive(countdown=60)
    (entry,) = worker.timer.armed
    worker.clock.now += 60
    worker.timer.fire(entry)
    assert [e.eta for e in worker.timer.armed] == [worker.clock.now + 10]
    worker.receive()
    worker.receive()
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]


@pytest.mark.parametrize("reloads", [1, 2])
def test_an_eta_that_outlives_a_reload_is_run(worker: Worker, reloads: int) -> None:
    """A call that waited for its ETA while tasks were reloaded joins the buffer that is new."""
    worker.receive(countdown=60)
    (entry,) = worker.timer.armed
    for _ in range(reloads):
        worker.connect()
    worker.timer.fire(entry)
    assert worker.waiting == 1
    assert len(worker_state.reserved_requests) == 1
    worker.let_time_pass(10)
    assert worker.batches == [("interval", ["id-0"])]


def test_an_eta_that_outlives_a_reload_and_its_connection_is_dropped(worker: Worker) -> None:
    """The same call does not run from here when the connection is lost after the reload."""
    worker.receive(countdown=60)
    (entry,) = worker.timer.armed
    worker.connect()
    worker.strategy.retire()
    worker.timer.fire(entry)
    assert worker.waiting == 0
    assert not worker_state.reserved_requests


def test_an_eta_that_outlives_its_connection_is_dropped(worker: Worker) -> None:
    """A call whose ETA comes after its connection was lost does not run from here."""
    worker.receive(countdown=60)
    (entry,) = worker.timer.armed
    worker.strategy.retire()
    worker.timer.fire(entry)
    assert worker.waiting == 0
    assert not worker_state.reserved_requests


def test_revoked_on_receipt(worker: Worker) -> None:
    """A call that was revoked before it came never enters the buffer."""
    worker_state.revoked.add("id-0")
    message = worker.receive()
    assert worker.waiting == 0
    assert message.channel.said == [("ack", "tag")]


def test_expired_on_receipt(worker: Worker) -> None:
    """A call that came too late never enters the buffer."""
    message = worker.receive(expires="2001-01-01T00:00:00+00:00")
    assert worker.waiting == 0
    assert message.channel.said == [("ack", "tag")]


def test_there_is_room_while_a_batch_fills(worker: Worker) -> None:
    """The broker may deliver a batch more from its first request on, until nothing comes in."""
    qos = worker.consumer.qos
    assert qos.total == 4
    worker.receive()
    assert qos.total == 4 + 3
    worker.receive()
    worker.let_time_pass(10)
    assert qos.total == 4 + 1, "no room for the next, and one batch of two on its way"
    worker.receive()
    assert qos.total == 4 + 3 + 1
    worker.consumer.sent[0]._finish()
    assert qos.total == 4 + 3
    worker.let_time_pass(10)
    assert qos.total == 4, "a batch of one is an ordinary task"


def test_full_batches_are_expected_for_a_second(worker: Worker) -> None:
    """After a full batch the broker may deliver as many as the budget says, and then no more."""
    qos, all_of_it = worker.consumer.qos, 3 * (4 + 1)
    for _ in range(4):
        worker.receive()
    assert qos.total == all_of_it
    worker.consumer.sent[0]._finish()
    worker.let_time_pass(0.9)
    for _ in range(2):
        worker.receive()
    assert qos.total == all_of_it, "the same, however many are on their way"
    worker.receive()
    worker.let_time_pass(0.9)
    assert qos.total == all_of_it
    worker.let_time_pass(0.1)
    assert qos.total == 4 + 3 + 2, "room for one that fills, and one is on its way"
    worker.consumer.sent[1]._finish()
    assert qos.total == 4 + 3
    worker.let_time_pass(9)
    assert qos.total == 4
    assert worker.timer.armed == []


def test_after_a_full_batch_the_room_goes_when_nothing_comes_in(worker: Worker) -> None:
    """An empty buffer needs none: when an interval has gone by after that second."""
    for _ in range(2):
        worker.receive()
    worker.let_time_pass(9.5)
    worker.receive()
    worker.consumer.sent[0]._finish()
    worker.let_time_pass(0.9)
    assert worker.consumer.qos.total == 3 * (4 + 1), "also though the timer woke up amid that"
    worker.let_time_pass(0.1)
    assert worker.consumer.qos.total == 4 + 3
    worker.let_time_pass(9.9)
    assert worker.consumer.qos.total == 4 + 3
    worker.let_time_pass(0.1)
    assert worker.consumer.qos.total == 4
    assert worker.timer.armed == []


def test_a_short_interval_counts_beside_that_second(app: Any, clock: Clock) -> None:
    """What comes in after a full batch does not wait for longer than its interval."""
    worker = Worker(app, clock, flush_every=3, flush_interval=0.2)
    for _ in range(3):
        worker.receive()
    worker.let_time_pass(0.3)
    worker.receive()
    worker.let_time_pass(0.2)
    assert [trigger for trigger, _ in worker.batches] == ["size", "interval"]
    for job in worker.consumer.sent:
        job._finish()
    worker.let_time_pass(0.5)
    assert worker.consumer.qos.total == 4 + 3
    worker.let_time_pass(0.2)
    assert worker.consumer.qos.total == 4
    assert worker.timer.armed == []


def test_a_batch_of_one_needs_no_timer(app: Any, clock: Clock) -> None:
    """It is always full, and there is no room that it could give back."""
    worker = Worker(app, clock, flush_every=1, flush_interval=10)
    worker.receive()
    assert len(worker.batches) == 1
    assert worker.timer.armed == []
    assert worker.consumer.qos.total == 4


def test_a_task_without_requests_takes_no_room(app: Any, clock: Clock, worker: Worker) -> None:
    """What other tasks may hold is not more for a batch task that nothing comes in for."""
    BatchesStep(worker.consumer).start(worker.consumer)
    assert worker.consumer.prefetch_counts == [4]


def test_the_step_ends_what_fills(worker: Worker) -> None:
    """When the consumer stops there is no room left over, and nothing waits."""
    step = BatchesStep(worker.consumer)
    worker.consumer.strategies["ordinary"] = lambda *args: None
    step.start(worker.consumer)
    worker.receive()
    assert worker.consumer.qos.total == 4 + 3
    step.stop(worker.consumer)
    assert worker.consumer.qos.total == 4
    assert worker.waiting == 0


def test_the_step_shows_the_whole_prefetch_count(worker: Worker) -> None:
    """`inspect stats` has the count that the broker is told, where Celery has its own."""
    step = BatchesStep(worker.consumer)
    step.start(worker.consumer)
    worker.receive()
    assert step.info(worker.consumer) == {"prefetch_count": 4 + 3}


def test_a_batch_that_cannot_be_sent_is_not_charged(worker: Worker) -> None:
    """What the pool does not take does not count as on its way."""

    def refuse(job: Any) -> None:
        raise OSError("the pool is gone")

    worker.consumer.on_task_request = refuse
    for _ in range(3):
        worker.receive()
    worker.let_time_pass(1)
    assert worker.consumer.qos.total == 4 + 3
    assert worker.consumer.qos.busy(0, 0) == 0


@pytest.mark.parametrize("state", [bootsteps.CLOSE, bootsteps.TERMINATE])
def test_a_worker_that_stops_sends_its_buffer_back(worker: Worker, state: int) -> None:
    """What is buffered goes back while batches still run, and is not fetched again."""
    said: list[str] = []
    consumer = worker.consumer
    consumer.task_consumer.cancel = lambda: said.append("cancel")
    for _ in range(2):
        worker.receive()
    for request in worker.strategy._buffer._items:
        request.message.reject_log_error = lambda *args, id=request.id: said.append(
            f"{id} {args[-1]}"
        )
    consumer.blueprint.state = state
    consumer.connection.transport.driver_type = "amqp"
    BatchesStep(consumer).stop(consumer)
    assert said == ["cancel", "id-1 True", "id-0 True"]


def test_a_worker_that_stops_without_a_connection_retires_its_buffer(worker: Worker) -> None:
    """An error in the middle of a reconnect may end the worker: there is no broker to tell."""
    message = worker.receive()
    worker.consumer.blueprint.state = bootsteps.TERMINATE
    worker.consumer.connection = None
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert message.channel.said == []
    assert worker.timer.armed == []


def test_what_comes_after_that_goes_back_too(worker: Worker) -> None:
    """A message that was on its way when the worker stopped is not kept."""
    worker.strategy.retire(requeue=True)
    message = worker.receive()
    assert [what for what, _ in message.channel.said] == ["requeue"]


def test_a_lost_connection_sends_nothing(worker: Worker) -> None:
    """Where the connection is gone, the broker takes the messages back by itself."""
    message = worker.receive()
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert message.channel.said == []
    assert worker.consumer.cancelled == 0


def test_a_lost_connection_drops_the_batches_that_wait_for_the_pool(worker: Worker) -> None:
    """The broker delivers what was not started on again; what runs, runs on."""
    for _ in range(6):
        worker.receive()
    running, waiting = worker.consumer.sent
    running.on_accepted(1, 0.0)
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert [len(job.requests) for job in (running, waiting)] == [3, 0]
    assert set(worker_state.requests) == {"id-0", "id-1", "id-2"}


def test_a_worker_that_stops_drops_no_batch(worker: Worker) -> None:
    """Its connection goes on until the batches that it has sent to the pool have ended."""
    for _ in range(3):
        worker.receive()
    worker.consumer.blueprint.state = bootsteps.CLOSE
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]


def test_nothing_is_flushed_between_the_loss_of_a_connection_and_its_end(worker: Worker) -> None:
    """With greenlets, timers go on while Celery closes it: for an interval, and for an ETA."""
    worker.receive()
    worker.receive()
    worker.consumer.connection = None
    worker.let_time_pass(10)
    worker.receive()
    assert worker.batches == []
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert not worker_state.reserved_requests


def test_a_worker_that_stops_without_a_connection_lets_go(worker: Worker) -> None:
    """As it does if Celery fails to clean up after a lost connection."""
    message = worker.receive()
    worker.consumer.blueprint.state = bootsteps.TERMINATE
    worker.consumer.connection = None
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert worker.waiting == 0
    assert message.channel.said == []


def test_static_prefetch_has_room_for_batches_that_run(worker: Worker) -> None:
    """Where the prefetch count cannot be changed, there is room for a batch of each process."""
    worker.consumer.connection.transport.driver_type = "amqp"
    worker.consumer.qos_global = False
    BatchesStep(worker.consumer).start(worker.consumer)
    assert worker.consumer.prefetch_counts == [4 + 3 * (2 + 1)]
    worker.receive()
    worker.let_time_pass(10)
    worker.connect()
    assert worker.consumer.qos.total == 4 + 3 * (2 + 1), "also after a reload"
    for _ in range(3):
        worker.receive()
    worker.consumer.sent[-1]._finish()
    assert worker.consumer.qos.total == 4 + 3 * (2 + 1), "nothing more is expected"


def test_what_a_worker_holds_is_bounded(worker: Worker) -> None:
    """Batches on their way are charged as one each, and nothing is left over when they are done."""
    for _ in range(61):
        worker.receive()
    assert worker.consumer.qos.total == 3 * (4 + 1)
    worker.let_time_pass(1)
    assert worker.consumer.qos.total == 3 * (4 + 1), "all that are expected are on their way"
    for job in worker.consumer.sent[2:]:
        job._finish()
    assert worker.consumer.qos.total == 4 + 3 + 2 * 2
    for job in worker.consumer.sent:
        job._finish()
    assert worker.consumer.qos.total == 4 + 3


def test_a_flush_that_fails_is_logged_and_hurts_nobody(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch that cannot be sent is one critical log line, and the worker goes on."""

    def broken(job: Any) -> None:
        raise OSError("no pool")

    with monkeypatch.context() as patch:
        patch.setattr(worker.consumer, "on_task_request", broken)
        for _ in range(3):
            worker.receive()
    assert [r.levelname for r in caplog.records if "no pool" in r.getMessage()] == ["CRITICAL"]
    for _ in range(3):
        worker.receive()
    assert worker.batches == [("size", ["id-3", "id-4", "id-5"])]


def test_a_subclass_may_extend_flush(app: Any, clock: Clock) -> None:
    """The worker flushes through the task's own flush method, which may filter and pass on."""
    seen: list[int] = []

    class Own(Batches):
        def flush(self, requests: Any) -> Any:
            seen.append(len(requests))
            return super().flush(list(requests)[:2])

    worker = Worker(app, clock, flush_every=3)
    own = app.register_task(type("Mine", (Own,), {"name": "unit.own", "flush_every": 3})())
    worker.task = own
    worker.connect()
    for _ in range(3):
        worker.receive()
    assert seen == [3]
    assert worker.batches == [("manual", ["id-0", "id-1"])]


def test_apply_buffer_of_0_1(worker: Worker) -> None:
    """The older name for a flush sends the same batch, with arguments of one's own if given."""
    for _ in range(3):
        worker.receive()
    requests = worker.consumer.sent[0].requests
    worker.task.apply_buffer(requests, (["x"],), {})
    assert worker.consumer.sent[1]._body_args == (["x"],)
    worker.task.apply_buffer([])
    assert len(worker.consumer.sent) == 2


def _yield_at_each_line(frame: Any, event: str, arg: Any) -> Any:
    """Let another thread go first at each line of the buffer's code."""
    if frame.f_code.co_filename != celery_batches.core.buffer.__file__:
        return None
    if event == "line":
        time.sleep(0)
    return _yield_at_each_line


def test_threads_neither_lose_nor_duplicate(app: Any, clock: Clock) -> None:
    """Messages and the timer on threads of their own: each request is in exactly one batch."""
    worker = Worker(app, clock, flush_every=3, flush_interval=10)
    count, threads = 60, 4
    requests = [
        Request(protocol_2(app, f"id-{i}", worker.task.name), app=app, task=worker.task)
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
    worker.let_time_pass(100)
    sent = [i for _, ids in worker.batches for i in ids]
    assert len(sent) == len(set(sent)) == count * threads
    assert all(1 <= len(ids) <= 3 for _, ids in worker.batches)
    assert worker.waiting == 0


def test_the_step_sends_the_acknowledgements_that_still_wait(worker: Worker) -> None:
    """A worker that stops acknowledges what has run, though its loop will not come round again."""
    sent: list[str] = []
    worker.consumer.pending_operations.append(lambda: sent.append("ack"))
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert sent == ["ack"]
