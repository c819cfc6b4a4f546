"""Two ways to send calls: one after the other, and a chunk at a time.

Runs in the process that sends calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from celery.result import AsyncResult
from kombu import Producer
from kombu.exceptions import KombuError, OperationalError

from ..transports.bulk_publish import BulkTransport, publish_each
from .calls import Call
from .celerys import own_message_way, signals_after_publishing, signals_before_publishing
from .collecting import CollectingProducer, Outbox
from .results import SentIds
from .template import MessageTemplate

if TYPE_CHECKING:
    from celery import Task

__all__ = ("ChunkSender", "LoopSender", "Sender")

#: The most bytes of messages in a chunk. With large messages, a chunk has fewer calls.
MAX_CHUNK_BYTES = 4 * 1024 * 1024

#: What is raised before a message is published, if a call cannot be made into one. The others may
#: be raised after it.
BAD_CALL_ERRORS = (TypeError, ValueError, LookupError, AttributeError, KombuError)

#: Options that say on which connection a call is sent.
CONNECTIONS = frozenset(("producer", "publisher", "connection"))


class Sender(Protocol):
    """A way to send calls.

    Attributes:
        sent: The calls that the broker has.
        uncertain: After an error, the calls that the broker may have.
        unsent: After an error, the calls that were added and that the broker does not have.
        has_lost_broker: Whether the broker could not be reached or has refused messages.
    """

    sent: SentIds
    uncertain: list[Call]
    unsent: list[Call]
    has_lost_broker: bool

    def add(self, call: Call) -> None:
        """Send a call, or keep it for the next flush. If this raises, the call is in a list."""

    def flush(self) -> None:
        """Send what was kept. If this raises, what was kept is in the lists."""


class LoopSender:
    """Sends one call after the other, with the task's own ``apply_async``."""

    def __init__(self, task: Task, options: Mapping[str, Any], sent: SentIds) -> None:
        self._task = task
        self._options = options
        self.sent = sent
        self.uncertain: list[Call] = []
        self.unsent: list[Call] = []
        self.has_lost_broker = False

    def add(self, call: Call) -> None:
        """Send a call."""
        options = {**self._options, **call.options, "task_id": call.task_id}
        try:
            result = self._task.apply_async(call.args, call.kwargs, **options)
        except Exception as exc:
            is_made = isinstance(exc, OperationalError) or not isinstance(exc, BAD_CALL_ERRORS)
            (self.uncertain if is_made else self.unsent).append(call)
            raise
        note_sent(self.sent, call, result)

    def flush(self) -> None:
        """Do nothing: nothing is kept."""


class ChunkSender:
    """Collects the messages of calls, and sends a chunk of them at a time."""

    def __init__(
        self,
        task: Task,
        options: Mapping[str, Any],
        sent: SentIds,
        *,
        chunk: int,
        transport: BulkTransport,
        producer: Producer | None,
        templates: bool,
    ) -> None:
        self._task = task
        self._options = {name: options[name] for name in options if name not in CONNECTIONS}
        self._chunk = chunk
        self._transport = transport
        self._producer = producer
        self._templates = templates and own_message_way(task, self._options)
        self._loop = LoopSender(task, options, sent)
        self.sent = sent
        self.uncertain: list[Call] = self._loop.uncertain
        self.unsent: list[Call] = self._loop.unsent
        self.has_lost_broker = False
        self._start_chunk()

    def _start_chunk(self) -> None:
        self._outbox = Outbox()
        #: The calls of the chunk, with their results and the count of messages up to their last.
        self._calls: list[tuple[Call, AsyncResult | None, int]] = []
        self._template: MessageTemplate | None = None
        self._collecting: CollectingProducer | None = None

    def add(self, call: Call) -> None:
        """Keep a call for the next flush. Flush if the chunk is full."""
        if CONNECTIONS & call.options.keys() or signals_after_publishing():
            self._flush_before(call)
            self._loop.add(call)
            return
        before = len(self._outbox.messages)
        try:
            result = self._collect(call)
        except BaseException:
            del self._outbox.messages[before:]
            self.unsent.append(call)
            raise
        self._calls.append((call, result, len(self._outbox.messages)))
        if len(self._calls) >= self._chunk or self._outbox.size >= MAX_CHUNK_BYTES:
            self.flush()

    def _flush_before(self, call: Call) -> None:
        """Flush. If this raises, a call that has to come after it is not sent."""
        try:
            self.flush()
        except BaseException:
            self.unsent.append(call)
            raise

    def _collect(self, call: Call) -> AsyncResult | None:
        template = self._template
        is_alike = self._templates and not call.options and not signals_before_publishing()
        if template is not None and is_alike and template.is_valid():
            template.publish(call.args, call.kwargs, call.task_id)
            return None
        app = self._task.app
        options = {**self._options, **call.options, "task_id": call.task_id}
        with app.producer_or_acquire(self._producer) as producer:
            if self._collecting is None or self._collecting.source is not producer:
                self._collecting = CollectingProducer(producer, self._outbox)
            collecting = self._collecting
            result = self._task.apply_async(call.args, call.kwargs, producer=collecting, **options)
        if template is None and is_alike:
            self._template = MessageTemplate.of(self._task, self._options, collecting, call, result)
        return result

    def flush(self) -> None:
        """Send the chunk."""
        calls, outbox = self._calls, self._outbox
        self._start_chunk()
        if not calls:
            return
        published: set[int] = set()
        is_started = False
        try:
            with self._task.app.producer_or_acquire(self._producer) as producer:
                self._check(producer, outbox)
                is_started = True
                is_supported = self._transport.is_supported(producer.channel)
                publish = self._transport.publish if is_supported else publish_each
                publish(producer.channel, outbox.messages, published.add)
        except BaseException:
            self.has_lost_broker = True
            self._account(calls, published, self.uncertain if is_started else self.unsent)
            raise
        for call, result, _ in calls:
            note_sent(self.sent, call, result)

    def _check(self, producer: Producer, outbox: Outbox) -> None:
        """Connect again if need be, and declare what the messages need. Nothing is sent."""
        conf = self._task.app.conf
        retry = self._options.get("retry")
        retry = conf.task_publish_retry if retry is None else retry
        policy = {**conf.task_publish_retry_policy, **(self._options.get("retry_policy") or {})}

        def check() -> None:
            if self._transport.is_supported(producer.channel):
                self._transport.check(producer.channel)
            for entity in outbox.entities:
                producer.maybe_declare(entity)

        if retry:
            # As kombu's publish() does: it limits how long a connection is waited for.
            producer.connection.transport_options.update(policy)
            producer.connection.ensure(producer, check, **policy)()
        else:
            check()

    def _account(
        self,
        calls: Sequence[tuple[Call, AsyncResult | None, int]],
        published: set[int],
        others: list[Call],
    ) -> None:
        """Tell calls that are sent from the others, by the positions of their messages."""
        start = 0
        for call, result, end in calls:
            if published.issuperset(range(start, end)):
                note_sent(self.sent, call, result)
            else:
                others.append(call)
            start = end


def note_sent(sent: SentIds, call: Call, result: AsyncResult | None) -> None:
    """Note the id of a call that is sent, and its result if it is not one that the task makes.

    Arguments:
        sent: Where they are noted.
        call: The call.
        result: What ``apply_async`` has returned, or None if it was not called.
    """
    if result is not None and not sent.is_usual(call.task_id, result):
        sent.add_other(result)
    elif call.is_named:
        sent.add_other(call.task_id)
    else:
        sent.add(call.task_id)
