"""Options are read when they are used: what is set in a running worker takes effect."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_batches import Batches
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.tasks import make_task


def sizes(worker: BatchWorker) -> list[int]:
    return [len(ids) for _, ids in worker.batches]


def send(worker: BatchWorker, count: int) -> None:
    for _ in range(count):
        worker.send()


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]


def test_a_larger_flush_every(worker: BatchWorker) -> None:
    """It holds from the next request on, for what is buffered too; there is room for the batch."""
    send(worker, 2)
    worker.task.flush_every = 6
    send(worker, 3)
    assert worker.batches == []
    assert worker.consumer.qos.total == 4 + 6
    send(worker, 1)
    assert sizes(worker) == [6]


def test_a_smaller_flush_every(worker: BatchWorker) -> None:
    """The next request flushes what is buffered, in batches that are not larger than that."""
    worker.task.flush_every = 10
    send(worker, 8)
    worker.task.flush_every = 4
    send(worker, 1)
    assert sizes(worker) == [4, 4]
    assert worker.waiting == 1
    assert worker.consumer.qos.total - 4 >= 4
    worker.advance(10)
    assert worker.batches[2:] == [("interval", ["id-8"])]


def test_a_smaller_flush_every_and_no_more_requests(worker: BatchWorker) -> None:
    """The timer splits what is buffered in the same way."""
    worker.task.flush_every = 10
    send(worker, 9)
    worker.task.flush_every = 4
    worker.advance(10)
    assert [(t, len(ids)) for t, ids in worker.batches] == [
        ("size", 4),
        ("size", 4),
        ("interval", 1),
    ]


@pytest.mark.parametrize("interval", [4, timedelta(seconds=4)])
def test_a_shorter_flush_interval(worker: BatchWorker, interval: Any) -> None:
    """The timer is armed anew with the next request; the wait counts from each arrival."""
    send(worker, 1)
    worker.advance(1)
    worker.task.flush_interval = interval
    send(worker, 1)
    worker.advance(2.999)
    assert worker.batches == []
    worker.advance(0.001)
    assert worker.batches == [("interval", ["id-0", "id-1"])]


def test_an_interval_that_is_over_already(worker: BatchWorker) -> None:
    """What is buffered is flushed at once."""
    send(worker, 1)
    worker.advance(5)
    worker.task.flush_interval = 2
    send(worker, 1)
    worker.advance(0)
    assert sizes(worker) == [2]


def test_a_longer_flush_interval(worker: BatchWorker) -> None:
    """The timer of the shorter one finds nothing due, and is armed anew."""
    send(worker, 1)
    worker.task.flush_interval = 60
    worker.advance(59)
    assert worker.batches == []
    worker.advance(1)
    assert sizes(worker) == [1]


def test_properties_of_a_subclass(app: Any, clock: Clock) -> None:
    """A property is not refused where the class is defined, and is read each time."""

    class Own(Batches):
        abstract = True
        size = 2

        @property
        def flush_every(self) -> int:
            return self.size

        @cached_property
        def flush_interval(self) -> timedelta:
            return timedelta(seconds=5)

    worker = BatchWorker(make_task(app, base=Own), clock)
    send(worker, 2)
    worker.task.size = 3
    send(worker, 3)
    assert sizes(worker) == [2, 3]
    send(worker, 1)
    worker.advance(5)
    assert sizes(worker) == [2, 3, 1]


BAD = [("flush_every", value) for value in (0, -1, "6", None, 2.5, True)]
BAD += [("flush_idle", value) for value in (0, -1, "6", 10, timedelta(minutes=1))]
BAD += [("flush_key", value) for value in (0, "not a name", ["a"])]
BAD += [("flush_keys", value) for value in (0, "6", None, 2.5)]
BAD += [("flush_weight", value) for value in ("Bytes", 1)]
BAD += [("flush_max_weight", value) for value in (0, "6", float("inf"))]
BAD += [("flush_interval", value) for value in (0, -1, "6", None, float("nan"), timedelta(0))]


@pytest.mark.parametrize(("option", "value"), BAD, ids=repr)
def test_a_value_that_makes_no_sense(
    worker: BatchWorker, option: str, value: Any, caplog: Any
) -> None:
    """It is logged once, with task, option and fix; the last good one stays, also on reconnect."""
    worker.task.flush_every = 2
    send(worker, 2)
    setattr(worker.task, option, value)
    send(worker, 4)
    worker.advance(20)
    worker.connect()
    send(worker, 2)
    assert sizes(worker) == [2, 2, 2, 2]
    (line,) = errors_in(caplog)
    assert "unit.click" in line
    assert option in line
    assert f"Set for example {option}=" in line
    assert "flush_every=2, flush_interval=10." in line
    worker.task.flush_every, worker.task.flush_interval = 3, 10
    send(worker, 3)
    assert sizes(worker)[4:] == [3]


def test_a_class_that_makes_no_sense_when_the_worker_connects_again(worker: BatchWorker) -> None:
    """A worker that runs does not end by that."""
    send(worker, 3)
    type(worker.app.tasks[worker.task.name]).flush_every = 0
    worker.connect()
    send(worker, 3)
    assert sizes(worker) == [3, 3]


def test_one_value_that_makes_no_sense_does_not_hold_up_the_other(worker: BatchWorker) -> None:
    """Each option has a last good value of its own."""
    worker.task.flush_interval = "soon"
    worker.task.flush_every = 2
    send(worker, 2)
    assert sizes(worker) == [2]


def test_a_property_that_raises(app: Any, clock: Clock, caplog: Any) -> None:
    """The defaults hold until it can be read; one line says so."""

    class Own(Batches):
        abstract = True
        broken = True

        @property
        def flush_every(self) -> int:
            if self.broken:
                raise LookupError("no such setting")
            return 2

    worker = BatchWorker(make_task(app, base=Own), clock)
    send(worker, 10)
    assert sizes(worker) == [10]
    (line,) = errors_in(caplog)
    assert "unit.click" in line
    assert "no such setting" in line
    worker.task.broken = False
    send(worker, 2)
    assert sizes(worker) == [10, 2]


def test_each_option_can_be_changed(worker: BatchWorker) -> None:
    """It holds from the next request on; what is buffered keeps its key."""
    task: Any = worker.task
    task.flush_every = 99
    send(worker, 2)
    task.flush_idle = 2
    send(worker, 1)
    worker.advance(2)
    assert worker.batches == [("idle", ["id-0", "id-1", "id-2"])]
    send(worker, 1)
    task.flush_key = lambda request: request.args[0] % 2
    send(worker, 2)
    task.flush_keys = 1
    send(worker, 1)
    worker.advance(0)
    assert [ids for trigger, ids in worker.batches[1:] if trigger == "keys"] == [
        *(["id-3"], ["id-4", "id-6"]),
    ]
    task.flush_key = None
    task.flush_weight, task.flush_max_weight = (lambda request: 2), 3
    send(worker, 2)
    assert worker.batches[-1] == ("weight", ["id-7"])
    task.flush_max_weight = 4
    send(worker, 1)
    assert worker.batches[-1] == ("weight", ["id-8", "id-9"])
    task.flush_weight = task.flush_max_weight = None
    send(worker, 5)
    worker.advance(2)
    assert worker.batches[-1] == ("idle", [f"id-{i}" for i in range(10, 15)])


def test_options_that_do_not_go_together(worker: BatchWorker, caplog: Any) -> None:
    """The last good ones stay, until they do."""
    task: Any = worker.task
    measured: list[str] = []

    def weigh(request: Any) -> int:
        measured.append(request.id)
        return 2

    task.flush_weight = weigh
    send(worker, 1)
    (line,) = errors_in(caplog)
    assert "flush_weight is" in line
    assert "it has no effect alone. Set for example flush_max_weight=" in line
    assert measured == []
    task.flush_max_weight = 1
    send(worker, 1)
    assert worker.batches == [("weight", ["id-0"]), ("weight", ["id-1"])]
    assert len(errors_in(caplog)) == 1


def test_a_function_is_no_property(app: Any) -> None:
    """Where the task is defined, what can be known to make no sense is refused."""
    with pytest.raises(ImproperlyConfigured, match="flush_every"):

        class Own(Batches):
            def flush_every(self) -> int:  # type: ignore[override]
                return 2


def test_prefetch_follows_both_ways(worker: BatchWorker) -> None:
    """The room for a batch that fills, and for those that are expected."""
    qos = worker.consumer.qos
    send(worker, 3)
    assert qos.total == 4 + 3 + 4 * 2, "batches of three are expected"
    worker.task.flush_every = 5
    send(worker, 1)
    assert qos.total == 4 + 5 + 2 + 3 * 4
    worker.task.flush_every = 1
    send(worker, 1)
    worker.task.flush_every = 5
    send(worker, 1)
    for job in worker.consumer.sent:
        job._finish()
    assert qos.total == 4 + 5
    worker.advance(30)
    assert qos.total == 4


def test_a_batch_that_cannot_fill_any_more(worker: BatchWorker, caplog: Any) -> None:
    """Where the prefetch count is static, a size beyond it is warned of once."""
    worker.strategy.reserve(3)
    assert worker.consumer.qos.total == 4 + 9
    worker.task.flush_every = 13
    send(worker, 1)
    assert not caplog.records
    worker.task.flush_every = 14
    send(worker, 2)
    (line,) = [r.getMessage() for r in caplog.records]
    assert "unit.click" in line
    assert "allows 13 messages" in line
    assert worker.consumer.qos.total == 4 + 9, "the broker cannot be told"


def test_what_the_broker_cannot_do(worker: BatchWorker, caplog: Any) -> None:
    """The warnings of the start are given again for the new value."""
    worker.consumer.task_consumer.channel.visibility_timeout = 100
    worker.task.flush_interval = 100
    send(worker, 1)
    worker.task.flush_every = 70_000
    send(worker, 1)
    said = [r.getMessage() for r in caplog.records]
    assert [sum(word in line for line in said) for word in ("visibility", "65535")] == [2, 1]


def test_a_limited_task_splits_what_it_holds_back(app: Any, clock: Clock) -> None:
    """Full batches that wait for the rate limit are cut when they leave."""

    class Bucket:
        tokens = 0

        def can_consume(self, tokens: int) -> bool:
            self.tokens, enough = max(0, self.tokens - 1), self.tokens > 0
            return enough

        def expected_time(self, tokens: int) -> float:
            return 0.25

    worker = BatchWorker(make_task(app, flush_every=6), clock)
    worker.consumer.disable_rate_limits = False
    bucket = worker.consumer.task_buckets[worker.task.name] = Bucket()
    send(worker, 13)
    worker.task.flush_every = 4
    bucket.tokens = 2
    worker.advance(0.25)
    assert sizes(worker) == [4, 4]
    bucket.tokens = 2
    worker.advance(0.5)
    assert sizes(worker) == [4, 4, 4]
    worker.advance(30)
    assert sizes(worker) == [4, 4, 4, 1]


def test_a_task_of_batches_of_one_that_grows_where_prefetch_is_static(
    app: Any, clock: Clock, caplog: Any
) -> None:
    """The broker was asked for no batch of it: the warning says how many messages it delivers."""
    worker = BatchWorker(make_task(app, flush_every=1), clock)
    worker.strategy.reserve(3)
    worker.task.flush_every = 5
    send(worker, 1)
    (line,) = [r.getMessage() for r in caplog.records]
    assert "allows 4 messages" in line
