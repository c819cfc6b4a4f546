"""A worker in this process, of Celery's own parts: from the broker's delivery to the pool and back.

Real are kombu's consumer, Celery's consumer with its handler of messages, its requests, and what
runs in the pool. By hand are the channel, the clock, the timer, and when the pool does what.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import TaskRevokedError, WorkerLostError
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from kit.channel import Channel
from kit.clock import Clock, Timer
from kit.requests import HOSTNAME
from kombu import Consumer as MessageConsumer
from kombu import Message
from kombu.common import QoS
from kombu.serialization import dumps, prepare_accept_content
from kombu.transport.virtual.base import Base64
from kombu.transport.virtual.base import Message as VirtualMessage
from nonsense import Sent

from celery_batches.worker.bootstep import BatchesStep
from celery_batches.worker.strategy import strategy_of

__all__ = ("Delivery", "InProcessWorker", "Problems")

PREFETCH = 8


@dataclass
class Delivery:
    """A message that the broker delivers.

    Attributes:
        sent: What a client has sent.
        amqp: Whether it comes by AMQP. If not, as with Redis, all of it is in one piece of JSON,
            in which the body is in base64.
        redelivered: What the broker says of that.
    """

    sent: Sent
    amqp: bool = True
    redelivered: Any = False

    def message(self, channel: Any, tag: int) -> Message:
        sent = self.sent
        info = {"exchange": "", "routing_key": "celery", "redelivered": self.redelivered}
        if self.amqp:
            return Message(
                body=sent.body,
                delivery_tag=tag,
                content_type=sent.content_type,
                content_encoding=sent.content_encoding,
                delivery_info=info,
                properties={**sent.properties, "application_headers": sent.headers},
                headers=sent.headers,
                channel=channel,
            )
        properties = {"delivery_info": info, "delivery_tag": tag, "body_encoding": "base64"}
        return VirtualMessage(
            {
                "body": sent.body and b64encode(sent.body).decode(),
                "content-type": sent.content_type,
                "content-encoding": sent.content_encoding,
                "headers": sent.headers,
                "properties": {**sent.properties, **properties},
            },
            channel=channel,
        )


class BrokerChannel(Channel):
    """What the broker is told of each delivery."""

    def message_to_python(self, raw: tuple[Delivery, int]) -> Message:
        delivery, tag = raw
        return delivery.message(self, tag)

    def decode_body(self, body: Any, encoding: str) -> Any:
        return Base64().decode(body)

    def of(self, tag: int) -> list[str]:
        """What it is told of one of them."""
        return [what for what, about in self.said if about == tag]


class Events:
    """An event dispatcher that sends as Celery's does, to nobody."""

    enabled = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def send(self, type: str, **fields: Any) -> None:
        dumps(fields, serializer="json")
        self.sent.append((type, fields.get("uuid")))


class Problems(logging.Handler):
    """What the log says that an operator has to look at; each line is formatted, as it would be."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.formatter = logging.Formatter("%(levelname)s %(name)s %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines

    def __enter__(self) -> Problems:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: Any) -> None:
        logging.getLogger().removeHandler(self)


class Pool:
    """Keeps what it is given, as bytes: like billiard, it pickles."""

    num_processes = 2
    is_green = False

    def __init__(self) -> None:
        self.given: list[tuple[bytes, SimpleNamespace]] = []

    def apply_async(self, target: Any, args: Any, **callbacks: Any) -> None:
        # As celery.concurrency.asynpool, under which there are a few more levels of tuples.
        self.given.append(
            (
                pickle.dumps((2, (1, None, target, args, {})), protocol=4),
                SimpleNamespace(**callbacks),
            )
        )


class InProcessWorker:
    """A worker with the tasks of an app. Its clock stands still until it is moved."""

    def __init__(self, app: Any, clock: Clock, problems: Problems) -> None:
        self.app, self.clock, self.problems = app, clock, problems
        self.pool = Pool()
        self.timer = Timer()
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

    def _process(self, job: Any) -> None:
        """As ``celery.worker.worker.WorkController`` does."""
        before = len(self.pool.given)
        with contextlib.suppress(TaskRevokedError):
            job.execute_using_pool(self.pool)
        self._note_refusals()
        assert len(self.pool.given) - before == bool(job.requests)
        if job.requests:
            tags = [request.message.delivery_tag for request in job.requests]
            self.runs.update(tags)
            self.batches.append(tags)

    def _note_refusals(self) -> None:
        self.consumer.perform_pending_operations()  # Celery before 5.7 has acknowledgements there.
        self.refusals += self.problems.take()

    def run_batch(self, *, lose: bool = False) -> None:
        """The pool runs the oldest batch that it was given, or loses the process that does."""
        if not self.pool.given:
            return
        sent, told = self.pool.given.pop(0)
        _, (_, _, target, args, _) = pickle.loads(sent)
        self._note_refusals()
        told.accept_callback(1, self.clock.now)
        if lose:
            try:
                raise WorkerLostError("lost")
            except WorkerLostError:
                told.error_callback(ExceptionInfo())
        else:
            told.callback(pickle.loads(pickle.dumps(target(*args))))
            ran = getattr(self.app, "ran", None)
            assert not ran or ran[-1] == [r.id for r in args[2] if r.id in ran[-1]]
        self.consumer.perform_pending_operations()
        self.problems.take()  # Of the batch, and of what its body did.

    def move_clock(self, seconds: float) -> None:
        """Let the timer fire for all that comes due, in order."""
        end = self.clock.now + seconds
        while due := [e for e in self.timer.armed if e.eta <= end]:
            entry = min(due, key=lambda e: e.eta)
            self.clock.now = max(self.clock.now, entry.eta)
            self.timer.fire(entry)
            self._note_refusals()
        self.clock.now = end

    @property
    def buffered(self) -> list[Any]:
        strategies = [strategy_of(self.consumer, name) for name in self.consumer.strategies]
        return [request for s in strategies if s for request in s._buffer._items]

    def finish(self) -> None:
        """Let all that is left happen."""
        self.move_clock(1e9)
        while self.pool.given:
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
