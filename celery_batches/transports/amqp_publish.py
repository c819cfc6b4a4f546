"""Shortcut ``amqp_publish``: publishes many messages to RabbitMQ in one write.

Runs in the process that sends calls. py-amqp writes each message separately and, with
``confirm_publish``, waits for the broker after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import amqp
import amqp.method_framing
from amqp.exceptions import RecoverableConnectionError
from amqp.serialization import dumps
from kombu.transport import pyamqp

from .outgoing import NotPublished

if TYPE_CHECKING:
    from kombu.transport.base import StdChannel

    from .outgoing import OnPublished, Outgoing

__all__ = ("check", "is_supported", "publish")

#: Class and method of ``basic.publish``, and the types of its arguments.
BASIC_PUBLISH = (60, 40)
PUBLISH_ARGUMENTS = "Bssbb"


def is_supported(channel: StdChannel) -> bool:
    """Whether py-amqp publishes on this channel as this shortcut expects, to RabbitMQ."""
    if type(channel) is not pyamqp.Channel:
        return False
    connection = channel.connection
    spec = getattr(amqp, "spec", None)
    return (
        type(connection) is pyamqp.Connection
        and bool(connection.connected)
        and connection.server_properties.get("product") == "RabbitMQ"
        and getattr(getattr(spec, "Basic", None), "Publish", None) == BASIC_PUBLISH
        and hasattr(getattr(spec, "Channel", None), "FlowOk")
        and isinstance(getattr(channel, "channel_id", None), int)
        and callable(getattr(amqp.method_framing, "frame_writer", None))
        and callable(getattr(connection.transport, "write", None))
    )


def check(channel: amqp.Channel) -> None:
    """Read what RabbitMQ has sent, such as that it closes the connection."""
    if channel.connection is None:
        raise RecoverableConnectionError("connection already closed")
    try:
        channel.connection.drain_events(timeout=0)
    except TimeoutError:
        return


def publish(channel: amqp.Channel, outgoing: Sequence[Outgoing], on_published: OnPublished) -> None:
    """Publish messages, in order, and wait until RabbitMQ has handled them.

    With ``confirm_publish``, RabbitMQ confirms each. Without it, RabbitMQ answers a method that
    comes after them, which it handles in order.
    """
    connection = channel.connection
    try:
        if connection.confirm_publish:
            _publish_confirmed(channel, outgoing, on_published)
        else:
            _write(channel, outgoing)
            _wait_for_answer(channel, outgoing[-1].options.get("timeout"))
            for position in range(len(outgoing)):
                on_published(position)
    except (amqp.ChannelError, NotPublished):
        raise  # The connection is sound. py-amqp opens again a channel that RabbitMQ has closed.
    except BaseException:
        # Part of a frame may be written, or an answer may be on its way.
        connection.collect()
        raise


def _write(channel: amqp.Channel, outgoing: Sequence[Outgoing]) -> None:
    connection = channel.connection
    frames = _Frames()
    write_frame = amqp.method_framing.frame_writer(connection, frames)
    for message, options in outgoing:
        arguments = (
            *(0, options["exchange"], options["routing_key"]),
            *(options.get("mandatory", False), options.get("immediate", False)),
        )
        packed = dumps(PUBLISH_ARGUMENTS, arguments)
        write_frame(1, channel.channel_id, BASIC_PUBLISH, packed, message)
    with connection.transport.having_timeout(outgoing[-1].options.get("timeout")):
        connection.transport.write(memoryview(frames.written))


class _Frames:
    """Stands in for the transport of a connection, and keeps what py-amqp writes."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """Keep it."""
        self.written += data


def _wait_for_answer(channel: amqp.Channel, timeout: float | None) -> None:
    """Wait for the answer to ``channel.flow``, which changes nothing."""
    channel.send_method(amqp.spec.Channel.Flow, "b", (True,))
    channel.wait(amqp.spec.Channel.FlowOk, timeout=timeout)


def _publish_confirmed(
    channel: amqp.Channel, outgoing: Sequence[Outgoing], on_published: OnPublished
) -> None:
    """Publish on a channel of its own, where RabbitMQ numbers the messages from 1."""
    options = outgoing[-1].options
    timeout = options.get("confirm_timeout") or options.get("timeout")
    answers = _Answers(len(outgoing), on_published)
    with _confirming_channel(channel, answers) as confirming:
        _write(confirming, outgoing)
        while answers.expected:
            if confirming.connection is None:
                raise RecoverableConnectionError("connection already closed")
            confirming.connection.drain_events(timeout=timeout)
    if answers.refused:
        count = f"{len(answers.refused)} of {len(outgoing)}"
        raise NotPublished(f"RabbitMQ has refused {count} messages (basic.nack)")


@contextmanager
def _confirming_channel(channel: amqp.Channel, answers: _Answers) -> Iterator[amqp.Channel]:
    confirming = channel.connection.channel()
    confirming.events["basic_return"] |= channel.events["basic_return"]
    confirming.events["basic_ack"].add(answers.on_ack)
    confirming.events["basic_nack"].add(answers.on_nack)
    confirming.confirm_select()
    yield confirming
    confirming.close()


class _Answers:
    """What RabbitMQ has said of messages that it numbers from 1."""

    def __init__(self, count: int, on_published: OnPublished) -> None:
        self.expected = set(range(1, count + 1))
        self.refused: set[int] = set()
        self._on_published = on_published
        #: Answers come mostly in order, and cover what is before them.
        self._first = 1

    def on_ack(self, delivery_tag: int, multiple: bool) -> None:
        """Note messages that RabbitMQ has."""
        self._answer(delivery_tag, multiple, lambda tag: self._on_published(tag - 1))

    def on_nack(self, delivery_tag: int, multiple: bool) -> None:
        """Note messages that RabbitMQ has refused."""
        self._answer(delivery_tag, multiple, self.refused.add)

    def _answer(self, last: int, multiple: bool, note: Callable[[int], Any]) -> None:
        for tag in range(self._first if multiple else last, last + 1):
            if tag in self.expected:
                self.expected.discard(tag)
                note(tag)
        if multiple:
            self._first = last + 1
