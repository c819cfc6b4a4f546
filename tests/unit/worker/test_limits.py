"""Rate limits: they count batches."""

from __future__ import annotations

from typing import Any

import pytest
from kombu.utils.limits import TokenBucket

from celery_batches.worker.prefetch import Prefetch
from celery_batches.worker.strategy import BatchStrategy
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.limits import HandBucket
from kit.tasks import make_task


class LimitedWorker:
    """A worker with a rate limit for its batch task."""

    def __init__(self, app: Any, clock: Clock, bucket: Any, **options: Any) -> None:
        self.task = make_task(app, flush_every=3, flush_interval=10, **options)
        self.worker = BatchWorker(self.task, clock)
        self.consumer = self.worker.consumer
        self.consumer.disable_rate_limits = False
        self.consumer.task_buckets[self.task.name] = bucket

    def send(self, count: int) -> None:
        for _ in range(count):
            self.worker.send()

    @property
    def strategy(self) -> BatchStrategy:
        return self.worker.strategy

    @property
    def batches(self) -> list[list[str]]:
        return [ids for _, ids in self.worker.batches]

    @property
    def timer(self) -> Any:
        (entry,) = self.consumer.timer.armed
        return entry


def ids(*numbers: int) -> list[str]:
    return [f"id-{number}" for number in numbers]


def test_a_batch_counts_as_one(app: Any, clock: Clock) -> None:
    """A token lets a whole batch go, however many requests it has."""
    world = LimitedWorker(app, clock, HandBucket(tokens=1))
    world.send(6)
    assert world.batches == [ids(0, 1, 2)]


def test_full_batches_wait_in_line(app: Any, clock: Clock) -> None:
    """What has no token waits, in order, and goes when there is one."""
    bucket = HandBucket()
    world = LimitedWorker(app, clock, bucket)
    world.send(7)
    assert world.batches == []
    for count in (1, 2):
        clock.now += 0.25
        bucket.tokens = 1
        world.consumer.timer.fire(world.timer)
        assert len(world.batches) == count
    assert world.batches == [ids(0, 1, 2), ids(3, 4, 5)]
    assert world.timer.eta == 1010.0  # The last request still waits for its interval.


def test_full_batches_are_not_expected(app: Any, clock: Clock) -> None:
    """A worker with a rate limit leaves to others what it may not run yet."""
    world = LimitedWorker(app, clock, HandBucket(tokens=1))
    world.consumer.qos = Prefetch(world.consumer.qos, lambda: 4)
    world.send(3)
    assert len(world.batches) == 1
    assert world.consumer.qos.total == 4 + 3 + 2


def test_what_is_due_goes_on_filling(app: Any, clock: Clock) -> None:
    """A part-filled batch whose interval is over takes in more until it may run."""
    bucket = HandBucket()
    world = LimitedWorker(app, clock, bucket)
    world.send(1)
    clock.now += 10
    world.consumer.timer.fire(world.timer)
    assert world.batches == []
    world.send(1)
    bucket.tokens = 1
    clock.now += 0.25
    world.consumer.timer.fire(world.timer)
    assert world.batches == [ids(0, 1)]
    assert world.consumer.sent[0].trigger == "interval"
    assert world.consumer.timer.armed == []


def test_an_unused_token_is_kept(app: Any, clock: Clock) -> None:
    """A timer that finds nothing to do takes no token."""
    bucket = HandBucket(tokens=1)
    world = LimitedWorker(app, clock, bucket)
    world.send(1)
    world.consumer.timer.fire(world.timer)  # Too early.
    assert bucket.tokens == 1
    assert world.batches == []


def test_it_looks_again_when_a_token_is_expected(app: Any, clock: Clock) -> None:
    """The timer wakes when the bucket says, and after a second at the latest."""
    bucket = HandBucket(wait=0.25)
    world = LimitedWorker(app, clock, bucket)
    world.send(3)
    assert world.timer.eta == 1000.25
    bucket.wait = 3600.0
    clock.now = 1000.25
    world.consumer.timer.fire(world.timer)
    assert world.timer.eta == 1001.25


@pytest.mark.parametrize("new", [None, HandBucket(tokens=10)], ids=["none", "looser"])
def test_a_limit_can_change_at_run_time(app: Any, clock: Clock, new: Any) -> None:
    """What waits under a limit goes on under the one that takes its place."""
    world = LimitedWorker(app, clock, HandBucket(wait=3600.0))
    world.send(6)
    assert world.batches == []
    world.consumer.task_buckets[world.task.name] = new
    clock.now += 1
    world.consumer.timer.fire(world.timer)
    assert len(world.batches) == 2


def test_a_limit_can_be_set_at_run_time(app: Any, clock: Clock) -> None:
    """A task without a limit can get one."""
    world = LimitedWorker(app, clock, None)
    world.send(3)
    world.consumer.task_buckets[world.task.name] = HandBucket()
    world.send(3)
    assert len(world.batches) == 1


def test_worker_disable_rate_limits(app: Any, clock: Clock) -> None:
    """Where rate limits are disabled, none counts."""
    world = LimitedWorker(app, clock, HandBucket())
    world.consumer.disable_rate_limits = True
    world.send(3)
    assert len(world.batches) == 1


def test_what_waits_is_retired_with_the_buffer(app: Any, clock: Clock) -> None:
    """With the connection, batches that wait for a token are dropped too, oldest first."""
    world = LimitedWorker(app, clock, HandBucket())
    world.send(4)
    retired = world.strategy.retire()
    assert [request.id for request in retired] == ids(0, 1, 2, 3)
    assert world.consumer.timer.armed == []


def test_the_bucket_of_celery(app: Any, clock: Clock) -> None:
    """Celery's own bucket is what counts: one batch at once, the next after its time."""
    world = LimitedWorker(app, clock, TokenBucket(0.001, capacity=1))
    world.send(6)
    assert len(world.batches) == 1
    assert world.timer.eta == 1001.0
