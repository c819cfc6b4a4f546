"""A worker in this process, of Celery's own parts: from the broker's delivery to the pool and back.

Real are kombu's consumer, Celery's consumer with its handler of messages, its requests, and what
runs in the pool. By hand are the channel, the clock, the timer, and when the pool does what.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.exceptions import TaskRevokedError, WorkerLostError
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu import Consumer as MessageConsumer
from kombu.common import QoS
from kombu.serialization import dumps, prepare_accept_content
from nonsense import Sent

from celery_batches.worker.bootstep import BatchesStep
from celery_batches.worker.job import BatchJob
from celery_batches.worker.strategy import strategy_of
from kit.clock import Clock, Timer
from kit.deliveries import BrokerChannel, Delivery
from kit.log import Problems
from kit.pool import Pool
from kit.requests import HOSTNAME

PREFETCH = 8


class Events:
    """An event dispatcher that sends as Celery's does, to nobody."""

    enabled = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def send(self, type: str, **fields: Any) -> None:
        dumps(fields, serializer="json")
        self.sent.append((type, fields.get("uuid")))


class InProcessWorker:
    """A worker with the tasks of an app. Its clock stands still until it is moved."""

    def __init__(self, app: Celery, clock: Clock, problems: Problems) -> None:
        self.app, self.clock, self.problems = app, clock, problems
        self.pool = Pool(pickles=True)
        self.timer = Timer(clock)
        self.events = Events()
        self.channel = BrokerChannel()
        self.consumer = Consumer(
            self._process,
            app=app,
            hostname=HOSTNAME,
            pool=self.pool,
            timer=self.timer,
            controller=SimpleNamespace(state=worker_state, semaphore=None, use_eventloop=False),
            initial_prefetch_count=PREFETCH,
        )
        self.consumer.connection = SimpleNamespace(
            transport=SimpleNamespace(driver_type="memory"), connection_errors=()
        )
        self.consumer.event_dispatcher = self.events
        self.consumer.qos = QoS(lambda prefetch_count: None, PREFETCH)
        self.consumer.task_consumer = SimpleNamespace(channel=self.channel, cancel=lambda: None)
        self.consumer.update_strategies()
        self.step = BatchesStep(self.consumer)
        self.step.start(self.consumer)
        self.messages = MessageConsumer(
            self.channel,
            [],
            accept=prepare_accept_content(app.conf.accept_content),
            on_decode_error=self.consumer.on_decode_error,
            auto_declare=False,
        )
        self.messages.on_message = self.consumer.create_task_handler()
        #: How often each delivery was given to the pool.
        self.runs: Counter[int] = Counter()
        #: What was sent to the pool: the batch, and the delivery tags of its members.
        self.batches: list[list[int]] = []
        #: What the log has said of deliveries, and of batches that were run.
        self.refusals: list[str] = []
        self.deliveries: list[Delivery] = []

    def deliver(self, delivery: Delivery) -> int:
        """The broker delivers a message: returns its tag."""
        tag = len(self.deliveries)
        self.deliveries.append(delivery)
        self.messages._receive_callback((delivery, tag))
        self._note_refusals()
        return tag

    def _process(self, job: BatchJob) -> None:
        """As ``celery.worker.worker.WorkController`` does."""
        before = len(self.pool.calls)
        with contextlib.suppress(TaskRevokedError):
            job.execute_using_pool(self.pool)
        self._note_refusals()
        assert len(self.pool.calls) - before == bool(job.requests)
        if job.requests:
            tags = [request.message.delivery_tag for request in job.requests]
            self.runs.update(tags)
            self.batches.append(tags)

    def _note_refusals(self) -> None:
        self.consumer.perform_pending_operations()  # Celery before 5.7 has acknowledgements there.
        self.refusals += self.problems.take()

    def run_batch(self, *, lose: bool = False) -> None:
        """The pool runs the oldest batch that it was given, or loses the process that does."""
        if not self.pool.calls:
            return
        call = self.pool.calls.pop(0)
        self._note_refusals()
        call.start(1, self.clock.now)
        if lose:
            call.fail(WorkerLostError("lost"))
        else:
            call.run()
            ran = getattr(self.app, "ran", None)
            assert not ran or ran[-1] == [r.id for r in call.args[2] if r.id in ran[-1]]
        self.consumer.perform_pending_operations()
        self.problems.take()  # Of the batch, and of what its body did.

    def advance(self, seconds: float) -> None:
        """Let the timer fire for all that comes due, in order."""
        self.timer.advance(seconds, after_each=self._note_refusals)

    @property
    def buffered(self) -> list[Request]:
        strategies = [strategy_of(self.consumer, name) for name in self.consumer.strategies]
        return [
            request
            for s in strategies
            if s
            for buffer in s._pending._buffers
            for request in buffer._items
        ]

    def finish(self) -> None:
        """Let all that is left happen."""
        self.advance(1e9)
        while self.pool.calls:
            self.run_batch()

    def assert_empty(self) -> None:
        """Nothing is left anywhere of what was delivered."""
        assert not self.buffered
        assert not self.timer.armed
        assert not worker_state.requests
        assert not worker_state.reserved_requests
        assert not worker_state.active_requests
        assert not getattr(worker_state, "scheduled_requests", ())
        assert self.consumer.qos.value == PREFETCH
        self.step.stop(self.consumer)
        assert self.consumer.qos.total == PREFETCH


def deliver(worker: InProcessWorker, sent: Sent, *, amqp: bool = True, again: Any = False) -> int:
    """The broker delivers what a client has sent: returns its tag."""
    return worker.deliver(Delivery(sent, amqp=amqp, redelivered=again))
