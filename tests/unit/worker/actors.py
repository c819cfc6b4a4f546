"""A batch task in a worker whose consumer, timer and pool are actors on a stage."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, ClassVar

import pytest
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state
from kombu.asynchronous.semaphore import DummyLock
from unit.interleave import Stage, SteppedLock, SteppedRLock
from unit.support import Clock, FakeConsumer, protocol_2

import celery_batches.pool.marking
import celery_batches.request
import celery_batches.worker.accounting
import celery_batches.worker.job
import celery_batches.worker.limits
import celery_batches.worker.prefetch
import celery_batches.worker.strategy
from celery_batches.worker.job import BatchJob
from celery_batches.worker.strategy import BatchStrategy

ADAPTER = (
    celery_batches.worker.strategy,
    celery_batches.worker.accounting,
    celery_batches.worker.job,
    celery_batches.worker.limits,
)


class Pool:
    """Takes batches; actors run them."""

    num_processes = 2
    apply_result = None
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.waiting: list[dict[str, Any]] = []
        #: What runs.
        self.running: list[dict[str, Any]] = []
        #: Whether the caller had a lock.
        self.locked = False
        #: The id of each batch that it was given.
        self.batches: list[str] = []
        #: Those that it has begun to run, and the ids in each.
        self.begun: list[str] = []
        self.given: list[list[str]] = []

    def apply_async(self, target: Any, **options: Any) -> Any:
        self.stage.point()
        if self.stage.current is not None and self.stage.current.locks:
            # The solo pool would run the body now; that of gevent may wait for another to end.
            self.locked = True
        self.waiting.append(options)
        self.batches.append(options["correlation_id"])
        # It may be run, and end, before the caller hears of it.
        self.stage.point()
        return Handle()


class Handle:
    """What a pool returns for a task."""


class Bucket:
    """A token bucket that gets a token each second of the test's clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.spent = clock.now

    def can_consume(self, tokens: int) -> bool:
        if self.clock.now - self.spent < tokens:
            return False
        self.spent += tokens
        return True

    def expected_time(self, tokens: int) -> float:
        return max(0.0, self.spent + tokens - self.clock.now)


class Consumer(FakeConsumer):
    """Sends what is ready to the pool, as the worker does."""

    disable_rate_limits = False

    def on_task_request(self, job: Any) -> None:
        with contextlib.suppress(TaskRevokedError):
            job.execute_using_pool(self.pool)


class World:
    """A batch task in a worker, and its actors."""

    def __init__(self, task: Any, decisions: Sequence[int], *, requeue: bool = False) -> None:
        self.task = task
        self.app = task.app
        self.clock = Clock()
        self.stage = Stage(
            decisions,
            trace=ADAPTER,
            fine=[BatchStrategy._end],
            coarse=[BatchJob.__init__, BatchJob._take_members, BatchJob._batch_limits],
        )
        self.stage.check = self.check
        self.pool = Pool(self.stage)
        self.requeue = requeue
        #: The batches that have asked whether they are too late, and were not.
        self.in_time: set[str] = set()
        self.messages: dict[str, Any] = {}
        #: Before any ETA.
        self.soon = datetime.now(timezone.utc) + timedelta(minutes=1)
        #: The ids that come one after the other.
        self.sources: list[list[str]] = []
        self.in_flight: list[Any] = []
        self.retired = False
        #: The batches that had begun when the others were dropped, if they were.
        self.in_good_time: set[str] | None = None

    def __enter__(self) -> World:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("celery_batches.worker.strategy.monotonic", self.clock)
        for module in ("strategy", "job"):
            name = f"celery_batches.worker.{module}.Lock"
            self.patch.setattr(name, partial(SteppedLock, self.stage))
        for module in ("accounting", "prefetch"):
            name = f"celery_batches.worker.{module}.RLock"
            self.patch.setattr(name, partial(SteppedRLock, self.stage))
        self.patch.setattr("celery_batches.worker.strategy.BatchJob", self._job)
        self.consumer = Consumer(self.app)
        self.consumer.qos._mutex = DummyLock()  # As Celery does, on every pool.
        self.consumer.pool = self.pool
        self.consumer.task_buckets[self.task.name] = None
        self.load()
        return self

    def __exit__(self, *_: Any) -> None:
        self.patch.undo()
        worker_state.reset_state()
        worker_state.revoked.clear()

    def load(self) -> None:
        """Celery connects, or loads its tasks again."""
        handler = self.task.Strategy(self.task, self.app, self.consumer)
        self.consumer.strategies[self.task.name] = handler

    @property
    def strategy(self) -> BatchStrategy:
        found: BatchStrategy = self.consumer.strategies[self.task.name].__self__
        return found

    def _job(self, *args: Any, still_ours: Any, **options: Any) -> BatchJob:
        def ours_if_not_retired(requests: Any) -> Any:
            if not self.retired:
                self.in_time.add(job.id)
            return still_ours(requests)

        job = BatchJob(*args, still_ours=ours_if_not_retired, **options)
        return job

    # What the actors do.

    def message(self, *, later: bool = False) -> Any:
        number = len(self.messages)
        # One after the other: the clock of a machine may be put back at any time.
        eta = {"eta": self.soon + timedelta(seconds=number)} if later else {}
        message = protocol_2(self.app, f"id-{number}", self.task.name, **eta)
        self.messages[message.headers["id"]] = message
        return message

    def receive(self, message: Any) -> None:
        handler = self.consumer.strategies[self.task.name]
        handler(message, None, message.ack_log_error, message.reject_log_error, [])

    def receiver(self, count: int, *, later: bool = False) -> None:
        messages = [self.message(later=later) for _ in range(count)]
        self.sources.append([message.headers["id"] for message in messages])

        def receiver() -> None:
            for message in messages:
                self.receive(message)

        self.stage.actor(receiver)

    def timer(self, *, hasty: bool = False, for_etas: bool = False) -> None:
        """Fires what was armed, also if it is cancelled after it was taken.

        Arguments:
            hasty: Whether it may fire a moment too early, as those of gevent do.
            for_etas: Whether it is for requests with an ETA, which come when they like.
        """

        def is_ours(entry: Any) -> bool:
            return isinstance(entry.args[0], float) is not for_etas

        def timer() -> None:
            early = False
            while True:
                self.stage.wait_for(lambda: any(map(is_ours, self.armed)), idle=True)
                entry = min(filter(is_ours, self.armed), key=lambda entry: entry.eta)
                self.consumer.timer.entries.remove(entry)
                self.in_flight.append(entry)
                early = for_etas or (hasty and not early)
                if not early:
                    self.clock.now = max(self.clock.now, entry.eta)
                self.stage.point(after_you=hasty)
                entry.fun(*entry.args)
                self.in_flight.remove(entry)

        self.stage.actor(timer, serves=True)

    def runner(self) -> None:
        """A thread of the pool."""

        def runner() -> None:
            while True:
                self.stage.wait_for(lambda: bool(self.pool.waiting), idle=True)
                self.run_one()

        self.stage.actor(runner, serves=True)

    def run_one(self) -> None:
        options = self.pool.waiting.pop(0)
        self.pool.begun.append(options["correlation_id"])
        members = options["args"][2]
        options["accept_callback"](1, 0.0)
        self.pool.given.append([member.id for member in members])
        self.pool.running.append(options)
        self.stage.point()
        options["callback"]((False, [(False, "None")] * len(members), 0.1))

    def timeouter(self) -> None:
        """The thread of the pool that watches the time limits."""

        def timeouter() -> None:
            while True:
                self.stage.wait_for(lambda: bool(self.pool.running), idle=True)
                self.pool.running.pop()["timeout_callback"](False, 1.0)

        self.stage.actor(timeouter, serves=True)

    def keeper(self, *events: str) -> None:
        """The consumer's own thread, which has this to do."""

        def keeper() -> None:
            for event in events:
                getattr(self, event)()
                self.stage.point()

        self.stage.actor(keeper)

    def retire(self) -> None:
        """The connection is lost, or the worker stops."""
        self.strategy.retire(requeue=self.requeue)
        self.retired = True

    def drop(self) -> None:
        """After that, nothing begins that waits in the pool."""
        self.strategy.drop_waiting()
        self.in_good_time = set(self.pool.begun)

    def limit(self) -> None:
        """``control.rate_limit`` sets a limit."""
        self.consumer.task_buckets[self.task.name] = Bucket(self.clock)

    def unlimit(self) -> None:
        self.consumer.task_buckets[self.task.name] = None

    def revoker(self, task_id: str) -> None:
        def revoker() -> None:
            worker_state.revoked.add(task_id)

        self.stage.actor(revoker)

    # What must hold.

    @property
    def armed(self) -> list[Any]:
        return self.consumer.timer.armed

    def check(self) -> None:
        """What must hold at each point."""
        strategy = self.strategy
        wakeups = [entry for entry in self.armed if entry.fun == strategy._on_timer]
        assert len(wakeups) <= 1, "two timers"
        if strategy._lock.is_held or not strategy._buffer:
            return
        coming = [entry for entry in self.in_flight if entry.fun == strategy._on_timer]
        assert any(entry.args[0] == strategy._timer_at for entry in wakeups + coming), "no timer"

    def play(self) -> Stage:
        """Run the actors; then see what has become of each request."""
        self.stage.run()
        assert not self.pool.locked, "sent under the lock"
        assert self.in_time.issuperset(self.pool.batches), "sent after the connection was lost"
        while self.pool.waiting:
            self.run_one()
        if self.in_good_time is not None:
            ran = [i for i, ids in zip(self.pool.begun, self.pool.given, strict=True) if ids]
            assert self.in_good_time.issuperset(ran), "run from a connection that is lost"
        given = Counter(task_id for ids in self.pool.given for task_id in ids)
        assert max(given.values(), default=1) == 1, "in two batches"
        assert max(map(len, self.pool.given), default=0) <= self.task.flush_every
        for ids in self.pool.given:
            for source in self.sources:
                own = [task_id for task_id in ids if task_id in source]
                assert own == sorted(own, key=source.index), "out of order"
        for task_id, message in self.messages.items():
            said = [what for what, _ in message.channel.said]
            if task_id in given:
                assert said == ["ack"], f"{task_id}: {said}"
            elif task_id not in worker_state.revoked or said != ["ack"]:
                assert self.retired, f"{task_id} is lost"
                assert said == (["requeue"] if self.requeue else []), f"{task_id}: {said}"
        room = self.consumer.qos.total - self.consumer.initial_prefetch_count
        assert room in ({0} if self.retired else {0, self.task.flush_every}), "the room is wrong"
        assert not self.consumer.qos.busy(0, 0), "a batch has not ended"
        assert not len(self.strategy._buffer)
        assert not self.armed
        for known in (worker_state.requests, worker_state.reserved_requests):
            assert not known, "the worker thinks it still has them"
        assert not worker_state.active_requests
        assert not getattr(worker_state, "scheduled_requests", ()), "Celery 5.7 and newer"
        return self.stage
