"""A producer that collects messages which kombu has made. Runs in the process that sends calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu import Producer

from ..transports.outgoing import Outgoing

if TYPE_CHECKING:
    from kombu import Connection
    from kombu.entity import Entity

    from ..transports.outgoing import StdChannel

__all__ = ("CollectingProducer", "Outbox")


class Outbox:
    """The messages of a chunk, and what has to be declared before they are sent."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []
        self.entities: list[Entity] = []
        #: Bytes of the bodies.
        self.size = 0

    def add(self, message: Any, options: dict[str, Any]) -> None:
        """Add a message, and the options of its ``basic_publish``."""
        self.messages.append(Outgoing(message, options))
        # A dict for virtual transports, an object of py-amqp for AMQP.
        self.size += len(message["body"] if isinstance(message, dict) else message.body)

    def declare(self, entities: list[Entity] | None) -> None:
        """Note entities that a message needs."""
        self.entities += [entity for entity in entities or () if entity not in self.entities]


class CollectingProducer(Producer):  # type: ignore[misc]  # kombu is not typed
    """Does all that a producer does, but for sending.

    It serializes, compresses and declares, and puts the message into the outbox.

    Attributes:
        published: What `publish` was last given: the body, and the options.
    """

    published: tuple[Any, dict[str, Any]] | None = None

    def __init__(self, source: Producer, outbox: Outbox) -> None:
        self.source = source
        self._outbox = outbox
        super().__init__(
            None,
            source.exchange,
            source.routing_key,
            source.serializer,
            source.auto_declare,
            source.compression,
        )
        self._collecting: _CollectingChannel | None = None

    @property
    def connection(self) -> Connection:
        """The connection of the producer whose messages are collected."""
        return self.source.connection

    @property
    def channel(self) -> _CollectingChannel:
        """A stand-in for the channel. It is kept, so that messages can be made without it."""
        if self._collecting is None:
            self._collecting = _CollectingChannel(self.source.channel, self._outbox)
        return self._collecting

    def revive(self, channel: StdChannel) -> None:
        """Go on with another channel. kombu calls it when it has connected again."""
        self.source.revive(channel)
        self._collecting = None

    def publish(self, body: Any, **options: Any) -> Any:
        """Collect a message. The arguments are those of ``kombu.Producer.publish``."""
        # kombu adds to the headers.
        self.published = (body, {**options, "headers": {**(options.get("headers") or {})}})
        self._outbox.declare(options.get("declare"))
        return super().publish(body, **options)


class _CollectingChannel:
    """Stands in for a channel on which nothing is published yet."""

    def __init__(self, channel: StdChannel, outbox: Outbox) -> None:
        self._channel = channel
        self._outbox = outbox

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def basic_publish(self, message: Any, **options: Any) -> None:
        """Collect what the channel would send."""
        self._outbox.add(message, options)
