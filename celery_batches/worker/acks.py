"""Acknowledging many messages at once where the transport can. Runs in the worker's main process.

A request is still acknowledged by Celery's own ``Request.acknowledge``, which calls the ``on_ack``
that it was made with: here a `BatchAck`. While a batch is told how it went, these are collected,
and then done as one operation of the event loop instead of one for each message.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from threading import local
from typing import Any

import amqp
from kombu.message import Message
from kombu.transport import virtual
from vine import promise

from ..transports.amqp_acks import acknowledge_at_once, acknowledge_in_turn

__all__ = ("BatchAck", "Promised", "together")


class _Collection(local):
    #: What is collected in this thread or greenlet, if anything is.
    acks: list[BatchAck] | None = None


_collection = _Collection()


class Promised:
    """What Celery is to do with a message later, in half the memory of its promise.

    Celery gives two promises to the strategy for each message, and a buffer keeps many. Nearly all
    of them just call a function with one argument: this keeps the two, and makes the promise again
    for whoever wants more of it, for example to add something with `then`.

    Arguments:
        given: A promise to call a method of the message when the event loop comes round to it. It
            is kept as it is if somebody waits for it, as Celery does to restore the prefetch count.
    """

    __slots__ = ("_call", "_on_error", "_promise", "_soon")

    def __init__(self, given: Any) -> None:
        if type(given) is promise and len(given.args) == 1 and given.listeners[0] is None:
            self._promise: Any = None
            self._soon, self._call, self._on_error = given.fun, given.args[0], given.on_error
        else:
            self._promise = given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made_again(), name)

    def __call__(self, *args: Any) -> Any:
        """Do what was promised."""
        return self._made_again()(*args)

    def _made_again(self) -> Any:
        if self._promise is None:
            self._promise = promise(self._soon, (self._call,), on_error=self._on_error)
        return self._promise


class BatchAck(Promised):
    """What acknowledges the message of one request; with others of its batch, if it can."""

    __slots__ = ("errors", "logger")

    def __call__(self, logger: Any, errors: Any) -> Any:
        """Acknowledge, or be acknowledged when all of the batch are."""
        if self._promise is not None:
            return super().__call__(logger, errors)
        self.logger, self.errors = logger, errors
        collected = _collection.acks
        if collected is None:
            by_itself = promise(self._by_itself, (self._call,), on_error=self._on_error)
            return by_itself(logger, errors)
        collected.append(self)
        return None

    def _by_itself(self, call: Any, logger: Any, errors: Any) -> Any:
        return self._soon(_acknowledge, [self])

    @property
    def soon(self) -> Callable[..., Any]:
        """Celery's way to have something done by the thread that may talk to the broker."""
        soon: Callable[..., Any] = self._soon
        return soon

    @property
    def has_loop(self) -> bool:
        """Whether an event loop does that, on one thread for all that is said to the broker."""
        return getattr(getattr(self.soon, "__self__", None), "hub", None) is not None

    @property
    def message(self) -> Any:
        """The message, if it is that which is to be acknowledged."""
        return getattr(self._call, "__self__", None)

    def alone(self) -> None:
        """Do what Celery does: errors of the connection are logged."""
        self._call(self.logger, self.errors)


@contextmanager
def together() -> Iterator[None]:
    """Collect what is acknowledged by this thread or greenlet, and then do it at once."""
    if _collection.acks is not None:
        yield
        return
    acks = _collection.acks = []
    try:
        yield
    finally:
        _collection.acks = None
        if acks:
            acks[0].soon(_acknowledge, acks)


def _acknowledge(acks: Sequence[BatchAck]) -> None:
    """Acknowledge messages, in order; what fails is delivered again, as always.

    Raises:
        Exception: The first that kombu raises instead of logging it. It does not keep the others
            from being acknowledged, unless it says that the connection is gone.
    """
    error: Exception | None = None
    for channel, group in groupby(acks, key=lambda ack: getattr(ack.message, "channel", None)):
        for ack in _remaining(channel, list(group)):
            try:
                ack.alone()
            except OSError:
                raise
            except Exception as exc:
                error = error or exc
    if error is not None:
        raise error


def _remaining(channel: Any, acks: Sequence[BatchAck]) -> Sequence[BatchAck]:
    """Acknowledge all that can be done at once on this channel; return the others."""
    at_once = _way_of(channel, has_loop=acks[0].has_loop)
    if at_once is None:
        return acks
    messages = [ack.message for ack in acks]
    if not _are_common(channel, messages):
        return acks
    try:
        at_once(channel, [message.delivery_tag for message in messages])
    except Exception:
        # Each by itself, then, so that it is for Celery to say what has failed.
        return acks
    for message in messages:
        # There is no other way to tell kombu's message that it has been acknowledged.
        message._state = "ACK"
    return ()


def _way_of(channel: Any, *, has_loop: bool) -> Callable[[Any, Sequence[Any]], None] | None:
    """Return what acknowledges several messages of this channel at once, if something does.

    Only for channels that are open, and in which nobody has changed how they acknowledge.
    """
    if isinstance(channel, amqp.Channel):
        plain = type(channel).basic_ack is amqp.Channel.basic_ack
        # Without a connection, kombu would make one.
        is_open = channel.connection is not None and channel.connection.connected
        if not plain or not is_open:
            return None
        # Without an event loop, other greenlets may be writing to the same connection.
        return acknowledge_at_once if has_loop else acknowledge_in_turn
    # Without Redis it cannot be imported; with it, it has been.
    redis = sys.modules.get("kombu.transport.redis")
    if redis is not None and isinstance(channel, redis.Channel):
        plain = type(channel).basic_ack is virtual.Channel.basic_ack and not channel.closed
        return _remove_from_redis if plain and type(channel.qos).ack is redis.QoS.ack else None
    return None


def _are_common(channel: Any, messages: Sequence[Any]) -> bool:
    """Whether kombu would have the channel acknowledge these messages, and do nothing else."""
    if not all(_acks_plainly(kind) for kind in set(map(type, messages))):
        return False
    no_ack = channel.no_ack_consumers or ()
    return not any(
        message.acknowledged or message.delivery_info.get("consumer_tag") in no_ack
        for message in messages
    )


def _acks_plainly(kind: type[Any]) -> bool:
    return kind.ack is Message.ack and kind.ack_log_error is Message.ack_log_error


def _remove_from_redis(channel: Any, tags: Sequence[str]) -> None:
    """Do for all these messages what ``QoS.ack`` does in one transaction for each."""
    qos = channel.qos
    with qos.pipe_or_acquire() as pipe:
        pipe.zrem(qos.unacked_index_key, *tags).hdel(qos.unacked_key, *tags).execute()
    for tag in tags:
        virtual.QoS.ack(qos, tag)
