"""When requests leave: by key, weight, idleness, and before they expire; and what is delivered."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from celery_batches import testing
from celery_batches.worker.allowance import MOST_FILLING
from celery_batches.worker.bootstep import BatchesStep
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.limits import HandBucket
from kit.redelivering import Redelivering
from kit.tasks import make_task


@pytest.fixture
def make(app: Any, clock: Clock) -> Any:
    def make(**options: Any) -> BatchWorker:
        options = {"flush_every": 3, "flush_interval": 10, **options}
        return BatchWorker(make_task(app, **options), clock)

    return make


def send(worker: BatchWorker, *keys: Any, **options: Any) -> None:
    for key in keys:
        worker.send(kwargs={"account": key}, **options)


def keys_of(worker: BatchWorker) -> list[tuple[str, list[Any]]]:
    return [(j.trigger, [r.kwargs["account"] for r in j.requests]) for j in worker.consumer.sent]


def after(worker: BatchWorker, seconds: float) -> datetime:
    return worker.clock.utc + timedelta(seconds=seconds)


def test_a_batch_has_one_key(make: Any) -> None:
    """Each key has a batch of its own that fills, and an interval of its own."""
    worker = make(flush_key="account")
    send(worker, "a", "b", "a")
    worker.advance(5)
    send(worker, "b", "c", "a")
    assert keys_of(worker) == [("size", ["a", "a", "a"])]
    worker.advance(5)
    assert keys_of(worker)[1:] == [("interval", ["b", "b"])]
    worker.advance(5)
    assert keys_of(worker)[2:] == [("interval", ["c"])]
    assert worker.waiting == 0
    assert worker.timer.armed == []


def test_one_key_too_many(make: Any) -> None:
    """The key that waits longest is flushed, at once."""
    worker = make(flush_key="account", flush_keys=2)
    send(worker, "a", "b", "a")
    worker.advance(1)
    send(worker, "c")
    assert keys_of(worker) == [("keys", ["a", "a"])]
    send(worker, "d")
    assert keys_of(worker)[1:] == [("keys", ["b"])]


def test_a_requeued_request_joins_its_key(app: Any, clock: Clock) -> None:
    """A suspect does so in a smaller batch, or alone; and no batch has two keys."""
    options = {"flush_key": lambda request: request.args[0] % 2}
    late = Redelivering(app, clock, **options)
    late.send_fresh(20)
    late.lose(0)
    late.lose(1)
    late.send_again(*range(20))
    late.advance(1)
    again = [[int(name[3:]) for name in ids] for _, ids in late.batches[2:]]
    assert sorted(number for batch in again for number in batch) == list(range(20))
    assert all(len({number % 2 for number in batch}) == 1 for batch in again)
    assert max(map(len, again)) == 4


def test_a_request_whose_eta_has_come_joins_its_key(make: Any) -> None:
    worker = make(flush_key="account")
    send(worker, "a", "b")
    send(worker, "a", eta=after(worker, 5))
    ((_, entry), *_) = [
        (e.eta, e) for e in worker.timer.armed if e.fun != worker.strategy._on_timer
    ]
    worker.timer.fire(entry)
    send(worker, "a")
    assert keys_of(worker) == [("size", ["a", "a", "a"])]


def test_batches_are_flushed_when_nothing_comes(make: Any) -> None:
    """The interval still counts from the oldest."""
    worker = make(flush_every=99, flush_idle=2)
    for _ in range(3):
        worker.send()
        worker.advance(1.9)
    worker.advance(0.1)
    assert worker.batches == [("idle", ["id-0", "id-1", "id-2"])]
    for _ in range(9):
        worker.send()
        worker.advance(1.5)
    assert [(trigger, len(ids)) for trigger, ids in worker.batches[1:]] == [("interval", 7)]


def test_each_key_has_a_clock_for_its_idleness(make: Any) -> None:
    worker = make(flush_every=99, flush_idle=2, flush_key="account")
    send(worker, "a", "b")
    worker.advance(1.5)
    send(worker, "b")
    worker.advance(0.5)
    assert keys_of(worker) == [("idle", ["a"])]
    worker.advance(1.5)
    assert keys_of(worker)[1:] == [("idle", ["b", "b"])]


def test_the_weight_is_tested_before_a_request_joins(make: Any, caplog: Any) -> None:
    """No batch has more, but for a single request that has. That one is warned of."""
    worker = make(flush_weight=lambda request: request.kwargs["account"], flush_max_weight=10)
    send(worker, 4, 5, 2)
    assert keys_of(worker) == [("weight", [4, 5])]
    send(worker, 8)
    assert keys_of(worker)[1:] == [("weight", [2, 8])]
    send(worker, 1, 99, 3)
    assert keys_of(worker)[2:] == [("weight", [1]), ("weight", [99])]
    (warning,) = [r.getMessage() for r in caplog.records]
    assert "unit.click" in warning
    assert "id-5 is 99, and flush_max_weight is 10" in warning
    worker.advance(10)
    assert keys_of(worker)[4:] == [("interval", [3])]


def test_a_batch_that_weighs_nothing_is_flushed_by_size(make: Any) -> None:
    worker = make(flush_weight=lambda request: 0, flush_max_weight=1)
    send(worker, 1, 2, 3)
    assert keys_of(worker) == [("size", [1, 2, 3])]


def test_a_batch_knows_its_key_and_weight(make: Any) -> None:
    """`flush` gets them, and so can an override."""
    batches: list[Any] = []
    worker = make(flush_weight=lambda request: 2, flush_max_weight=4, flush_key="account")
    worker.task.flush = batches.append
    send(worker, "a", "b", "a")
    (batch,) = batches
    assert (batch.trigger, batch.key, batch.weight, len(batch)) == ("weight", "a", 4, 2)


def test_a_body_knows_the_key_and_weight_of_its_batch(app: Any) -> None:
    """As `self.batch`, from the buffer to the pool."""
    seen: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        seen.append((self.batch.trigger, self.batch.key, self.batch.weight))

    options = {"flush_key": "account", "flush_weight": lambda request: 2, "flush_max_weight": 4}
    with testing.BatchWorker(make_task(app, body, bind=True, flush_every=9, **options)) as worker:
        for key in "aba":
            worker.send(kwargs={"account": key})
        worker.advance(30)
    assert seen == [("weight", "a", 4.0), ("interval", "b", 2.0)]


def test_a_batch_leaves_before_one_of_its_requests_expires(make: Any) -> None:
    """A second before, with all that wait."""
    worker = make(flush_every=99)
    worker.send()
    worker.send(expires=after(worker, 5))
    worker.send()
    worker.advance(3.9)
    assert worker.batches == []
    worker.advance(0.2)
    assert worker.batches == [("expires", ["id-0", "id-1", "id-2"])]


def test_requests_that_expire_soon_still_share_batches(make: Any) -> None:
    """One that has less than two seconds left waits for half of that."""
    worker = make(flush_every=10)
    for _ in range(25):
        worker.send(expires=after(worker, 1))
        worker.advance(0.01)
    assert [(trigger, len(ids)) for trigger, ids in worker.batches] == [("size", 10), ("size", 10)]
    worker.advance(0.45)
    assert [(trigger, len(ids)) for trigger, ids in worker.batches[2:]] == [("expires", 5)]


def test_what_expires_late_does_not_hurry(make: Any) -> None:
    worker = make(flush_every=99)
    worker.send(expires=after(worker, 3600))
    worker.advance(10)
    assert [trigger for trigger, _ in worker.batches] == ["interval"]


def test_a_rate_limit_holds_keys_back_and_they_take_turns(make: Any) -> None:
    """Where nothing may leave, there may be more keys than the option says for a while."""
    worker = make(flush_key="account", flush_keys=2)
    worker.consumer.disable_rate_limits = False
    bucket = worker.consumer.task_buckets[worker.task.name] = HandBucket()
    send(worker, *"aaaaaabbbcd")
    assert worker.batches == []
    bucket.tokens = 3
    worker.advance(0.25)
    assert keys_of(worker) == [("size", list("aaa")), ("size", list("bbb")), ("size", list("aaa"))]
    send(worker, *"e")
    bucket.tokens = 9
    worker.advance(0.25)
    assert keys_of(worker)[3:] == [("keys", ["c"])]


def test_the_broker_delivers_a_batch_for_each_key(make: Any) -> None:
    """The count changes when the number of keys doubles, and follows it back."""
    worker = make(flush_key="account")
    qos, totals = worker.consumer.qos, []
    for key in range(9):
        send(worker, key)
        totals.append(qos.total - 4)
    assert totals == [3, 6, 12, 12, 24, 24, 24, 24, 48]
    worker.advance(5)
    send(worker, 0, 1)
    worker.advance(5)
    for job in worker.consumer.sent:
        job._finish()
    assert qos.total == 4
    assert worker.timer.armed == []


def test_the_broker_delivers_no_more_than_for_the_most_keys(make: Any) -> None:
    """However many keys there are: what a worker holds is bounded."""
    worker = make(flush_key="account", flush_keys=5)
    for key in range(1000):
        send(worker, key)
        assert worker.consumer.qos.total <= 4 + 5 * 3 + 4 * 2
        assert worker.waiting <= 5
    assert {trigger for trigger, _ in worker.batches} == {"keys"}


def test_a_full_window_flushes_the_key_that_waits_longest(make: Any) -> None:
    """Where the broker delivers no more, no batch would become full."""
    worker = make(flush_key="account", flush_every=20_000)
    for _ in range(MOST_FILLING // 4):
        send(worker, *"abcd")
    ((trigger, keys),) = keys_of(worker)
    assert trigger == "room"
    assert keys == ["a"] * (MOST_FILLING // 4)


def test_where_the_broker_is_asked_once_each_key_has_room(make: Any) -> None:
    """Also for keys beside the batches that run; and a full window flushes."""
    worker = make(flush_key="account", flush_keys=5)
    worker.consumer.connection.transport.driver_type = "amqp"
    worker.consumer.qos_global = False
    BatchesStep(worker.consumer).start(worker.consumer)
    assert worker.consumer.prefetch_counts == [4 + 3 * (2 + 5)]
    worker.task.flush_keys = 50
    for key in range(15):
        send(worker, key)
    assert keys_of(worker) == [("room", [0])]
    assert worker.consumer.qos.total == 4 + 3 * (2 + 5)


def test_a_reload_keeps_keys_and_weights(make: Any) -> None:
    """The new strategy gets what the old one has measured."""
    calls: list[Any] = []

    def weigh(request: Any) -> float:
        calls.append(request.id)
        return 4

    worker = make(flush_weight=weigh, flush_max_weight=8, flush_key="account", flush_every=9)
    send(worker, "a", "b")
    worker.connect()
    send(worker, "a")
    assert keys_of(worker) == [("weight", ["a", "a"])]
    assert calls == ["id-0", "id-1", "id-2"]


def test_a_lost_connection_releases_all_keys(make: Any) -> None:
    worker = make(flush_key="account")
    send(worker, *"abab")
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert worker.waiting == 0
    assert worker.consumer.qos.total == 4
    assert worker.timer.armed == []
