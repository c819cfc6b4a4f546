"""Shortcut ``redis_publish``: publishes many messages to Redis in one round trip.

Runs in the process that sends calls. kombu 5.7 and newer have batches of messages, which
``Producer.batch`` uses. With an older kombu, its own channel puts the messages into a pipeline.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from kombu.transport import virtual

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from kombu.transport.base import StdChannel
    from kombu.transport.redis import Channel

    from .outgoing import OnPublished, Outgoing

__all__ = ("check", "is_supported", "publish")

#: Commands in a batch of kombu's. A batch is one chunk, so it must not be executed before its end.
NO_LIMIT = sys.maxsize

#: Options of the connection with which redis-py sends a pipeline again when it has failed. Then
#: all its messages could be sent twice.
RESENDS = ("retry", "retry_on_error", "retry_on_timeout")


def is_supported(channel: StdChannel) -> bool:
    """Whether this is a channel of kombu's Redis transport that publishes as kombu's own does."""
    # The module needs redis-py. Whoever has a channel of it has imported it.
    redis = sys.modules.get("kombu.transport.redis")
    if redis is None or not isinstance(channel, redis.Channel) or channel.closed:
        return False
    kind = type(channel)
    return (
        kind._put is redis.Channel._put
        and kind._put_fanout is redis.Channel._put_fanout
        and kind.basic_publish is virtual.Channel.basic_publish
        and kind.conn_or_acquire is redis.Channel.conn_or_acquire
        and not any(channel.pool.connection_kwargs.get(option) for option in RESENDS)
    )


def check(channel: Channel) -> None:
    """Ask whether Redis answers."""
    with channel.conn_or_acquire() as client:
        client.ping()


def publish(channel: Channel, outgoing: Sequence[Outgoing], on_published: OnPublished) -> None:
    """Publish messages, in order. Each is complete for itself; together they are no transaction."""
    if getattr(channel, "supports_batch_publish", False):
        _publish_batch(channel, outgoing)
        for position in range(len(outgoing)):
            on_published(position)
    else:
        _publish_pipeline(channel, outgoing, on_published)


def _publish_batch(channel: Channel, outgoing: Sequence[Outgoing]) -> None:
    batch = channel.create_publish_batch(NO_LIMIT)
    try:
        for message, options in outgoing:
            batch.publish(message, **options)
        batch.flush()
    finally:
        batch.close()


def _publish_pipeline(
    channel: Channel, outgoing: Sequence[Outgoing], on_published: OnPublished
) -> None:
    with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
        stand_in = _PipelineChannel(channel, pipeline)
        waiting: list[tuple[int, int]] = []
        for position, (message, options) in enumerate(outgoing):
            if options["exchange"]:
                # Which queues get it is known only to Redis.
                _execute(pipeline, waiting, on_published)
                channel.basic_publish(message, **options)
                on_published(position)
            else:
                virtual.Channel.basic_publish(stand_in, message, **options)
                waiting.append((position, len(pipeline)))
        _execute(pipeline, waiting, on_published)


def _execute(pipeline: Any, waiting: list[tuple[int, int]], on_published: OnPublished) -> None:
    """Execute what is in the pipeline.

    Arguments:
        pipeline: The pipeline.
        waiting: The position of each message in it, and the count of commands up to its last.
        on_published: See `publish`.
    """
    answers = pipeline.execute(raise_on_error=False)
    start = 0
    for position, end in waiting:
        if not any(isinstance(answer, Exception) for answer in answers[start:end]):
            on_published(position)
        start = end
    waiting.clear()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


class _PipelineChannel:
    """Stands in for a channel whose commands go into a pipeline."""

    def __init__(self, channel: Channel, pipeline: Any) -> None:
        self._channel = channel
        self._client = _PipelineClient(pipeline)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        type(self._channel)._put(self, queue, message, **options)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[_PipelineClient]:
        """Yield what stands in for the client of Redis."""
        yield self._client


class _PipelineClient:
    """The commands with which kombu's Redis channel delivers a message."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def lpush(self, key: str, value: str) -> None:
        """Add the message to its queue."""
        self._pipeline.lpush(key, value)

    def pexpire(self, key: str, milliseconds: int) -> None:
        """Have the queue expire."""
        self._pipeline.pexpire(key, milliseconds)

    def pipeline(self, transaction: bool = True) -> AbstractContextManager[_PipelineClient]:
        """Return this, since there is a pipeline already."""
        return nullcontext(self)

    def execute(self) -> None:
        """Do nothing yet."""
