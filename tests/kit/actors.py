"""A batch task in a worker whose consumer, timer and pool are actors on a stage."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from celery import Celery
from celery.worker import state as worker_state
from kombu import Message

from celery_batches import Batches
from celery_batches.worker import (
    accounting,
    endings,
    job,
    limits,
    pending,
    sender,
    strategy,
    timer,
)
from celery_batches.worker.endings import BatchEndings
from celery_batches.worker.job import BatchJob
from celery_batches.worker.strategy import BatchStrategy
from kit.clock import Clock, Entry
from kit.interleave import SteppedLock, SteppedRLock
from kit.invariants import check_batches, check_each_point, check_messages, check_the_end
from kit.limits import Bucket
from kit.messages import protocol_2
from kit.stage import Stage
from kit.stepped import SteppedConsumer, SteppedPool

ADAPTER = (strategy, pending, timer, limits, sender, accounting, job, endings)


class StagedWorker:
    """A batch task in a worker, and its actors."""

    def __init__(self, task: Batches, decisions: Sequence[int], *, requeue: bool = False) -> None:
        self.task = task
        self.app: Celery = task.app
        self.clock = Clock()
        self.stage = Stage(
            decisions,
            trace=ADAPTER,
            fine=[BatchStrategy._close],
            coarse=[BatchJob.__init__, BatchEndings.__init__, BatchJob._take_members],
        )
        self.stage.check = self.check
        self.pool = SteppedPool(self.stage)
        self.requeue = requeue
        #: The batches that have asked whether they are too late, and were not.
        self.in_time: set[str] = set()
        self.messages: dict[str, Message] = {}
        #: Before any ETA.
        self.soon = datetime.now(timezone.utc) + timedelta(minutes=1)
        #: The ids that come one after the other.
        self.sources: list[list[str]] = []
        self.in_flight: list[Entry] = []
        self.retired = False
        #: The batches that had begun when the others were dropped, if they were.
        self.in_good_time: set[str] | None = None

    def __enter__(self) -> StagedWorker:
        self.patch = pytest.MonkeyPatch()
        for module in ("strategy", "endings"):
            name = f"celery_batches.worker.{module}.Lock"
            self.patch.setattr(name, partial(SteppedLock, self.stage))
        for module in ("accounting", "prefetch"):
            name = f"celery_batches.worker.{module}.RLock"
            self.patch.setattr(name, partial(SteppedRLock, self.stage))
        self.patch.setattr("celery_batches.worker.sender.BatchJob", self._job)
        self.consumer = SteppedConsumer(self.app, self.clock, self.pool)
        self.consumer.task_buckets[self.task.name] = None
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
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
                self.in_time.add(made.id)
            return still_ours(requests)

        made = BatchJob(*args, still_ours=ours_if_not_retired, **options)
        return made

    # What the actors do.

    def message(self, *, later: bool = False) -> Message:
        number = len(self.messages)
        # One after the other: the clock of a machine may be put back at any time.
        eta = {"eta": self.soon + timedelta(seconds=number)} if later else {}
        message = protocol_2(self.app, f"id-{number}", self.task.name, **eta)
        self.messages[message.headers["id"]] = message
        return message

    def receive(self, message: Message) -> None:
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

        def is_ours(entry: Entry) -> bool:
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
                self.stage.wait_for(lambda: bool(self.pool.calls), idle=True)
                self.run_one()

        self.stage.actor(runner, serves=True)

    def run_one(self) -> None:
        call = self.pool.calls.pop(0)
        self.pool.begun.append(call.id)
        members = call.args[2]
        call.start()
        self.pool.given.append([member.id for member in members])
        self.pool.running.append(call)
        self.stage.point()
        call.end((False, [(False, "None")] * len(members), 0.1))

    def timeouter(self) -> None:
        """The thread of the pool that watches the time limits."""

        def timeouter() -> None:
            while True:
                self.stage.wait_for(lambda: bool(self.pool.running), idle=True)
                self.pool.running.pop().time_out(1.0)

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
        self.strategy.sender.release_waiting()
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
    def armed(self) -> list[Entry]:
        return self.consumer.timer.armed

    def check(self) -> None:
        """What must hold at each point."""
        check_each_point(self.strategy, self.armed, self.in_flight)

    def play(self) -> Stage:
        """Run the actors; then see what has become of each request."""
        self.stage.run()
        assert not self.pool.locked, "sent under the lock"
        assert self.in_time.issuperset(self.pool.batches), "sent after the connection was lost"
        while self.pool.calls:
            self.run_one()
        if self.in_good_time is not None:
            begun = [i for i, ids in zip(self.pool.begun, self.pool.given, strict=True) if ids]
            assert self.in_good_time.issuperset(begun), "run from a connection that is lost"
        check_batches(self.pool.given, self.sources, self.task.flush_every)
        ran = {task_id for ids in self.pool.given for task_id in ids}
        dropped = ["requeue"] if self.requeue else []
        check_messages(self.messages, ran, dropped if self.retired else None)
        check_the_end(self.strategy, retired=self.retired)
        return self.stage
