"""Acknowledges the messages of a batch together. Runs in the worker's main process.

Celery's own ``Request.acknowledge`` calls the ``on_ack`` of the request, here a `DeferredAck`.
While a batch notifies its requests, `collect_acks` collects these. Then one operation of the event
loop acknowledges all of them.

This is the shortcut ``lean_promises``, which also saves memory for each buffered message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from threading import local
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from vine import promise

from ..core.shortcuts import SHORTCUTS, Shortcut
from ..transports.bulk_acks import acknowledge_in_bulk

if TYPE_CHECKING:
    from logging import Logger

    from kombu import Message

__all__ = ("DeferredAck", "LeanPromise", "collect_acks")

#: The errors of a connection, which kombu logs and does not raise.
Errors: TypeAlias = "tuple[type[Exception], ...]"


class _Collection(local):
    #: The acknowledgements that this thread or greenlet collects, if it is in `collect_acks`.
    acks: list[DeferredAck] | None = None


_collection = _Collection()


class LeanPromise:
    """A compact stand-in for Celery's one-argument promise.

    Celery passes two promises to the strategy for each message, and a buffer keeps many. Nearly all
    of them call a function with one argument. This class keeps only these two values. It makes the
    promise again when code uses another of its methods, such as `then`.

    Arguments:
        given: A promise to call a method of the message on the event loop. It is kept unchanged if
            it has a listener, as when Celery restores the prefetch count, or has another form.
    """

    __slots__ = ("_call", "_on_error", "_promise", "_soon")

    def __init__(self, given: promise) -> None:
        # Each message costs two of these, so this makes no further call.
        try:
            if type(given) is promise and len(given.args) == 1 and given.listeners[0] is None:
                self._soon, self._call, self._on_error = given.fun, given.args[0], given.on_error
                self._promise: promise | None = None
                return
        except (AttributeError, LookupError, TypeError):
            pass  # It does not have the attributes of the expected promise of vine.
        self._promise = given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._full_promise(), name)

    def __call__(self, *args: Any) -> Any:
        """Call the promise."""
        return self._full_promise()(*args)

    def _full_promise(self) -> promise:
        if self._promise is None:
            self._promise = promise(self._soon, (self._call,), on_error=self._on_error)
        return self._promise


class DeferredAck(LeanPromise):
    """Acknowledges the message of one request, together with its batch if possible.

    Arguments:
        given: The promise that acknowledges the message.
    """

    __slots__ = ("errors", "logger")

    #: The enabled shortcuts.
    shortcuts: ClassVar[Collection[Shortcut]] = SHORTCUTS

    @classmethod
    def with_shortcuts(cls, enabled: Collection[Shortcut]) -> type[DeferredAck]:
        """Return this class for an app that enables only these shortcuts."""
        if enabled == cls.shortcuts:
            return cls
        return type(cls.__name__, (cls,), {"__slots__": (), "shortcuts": enabled})

    def __call__(self, logger: Logger, errors: Errors) -> Any:
        """Acknowledge now, or defer to the enclosing `collect_acks`."""
        if self._promise is not None:
            return super().__call__(logger, errors)
        self.logger, self.errors = logger, errors
        collected = _collection.acks
        if collected is None:
            separate = promise(self._acknowledge_now, (self._call,), on_error=self._on_error)
            return separate(logger, errors)
        collected.append(self)
        return None

    def _acknowledge_now(self, call: Callable[..., Any], logger: Logger, errors: Errors) -> Any:
        return self._soon(_acknowledge, [self])

    @property
    def soon(self) -> Callable[..., Any]:
        """Celery's function that defers a call to the thread that may use the connection."""
        soon: Callable[..., Any] = self._soon
        return soon

    @property
    def has_loop(self) -> bool:
        """Whether an event loop makes these calls, and all writes to the connection."""
        return getattr(getattr(self.soon, "__self__", None), "hub", None) is not None

    @property
    def message(self) -> Message | None:
        """The message to acknowledge, or None if the promise is not a method of a message."""
        return getattr(self._call, "__self__", None)

    def acknowledge_separately(self) -> None:
        """Acknowledge as Celery does, which logs errors of the connection."""
        self._call(self.logger, self.errors)


@contextmanager
def collect_acks() -> Iterator[None]:
    """Collect the acknowledgements of this thread or greenlet, and then make them together."""
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


def _acknowledge(acks: Sequence[DeferredAck]) -> None:
    """Acknowledge messages in order. The broker redelivers those that fail, as always.

    Raises:
        Exception: The first error that kombu raises instead of logging it. The remaining messages
            are still acknowledged, unless the error is that of a lost connection.
    """
    error: Exception | None = None
    for channel, group in groupby(acks, key=lambda ack: getattr(ack.message, "channel", None)):
        remaining = list(group)
        messages = [ack.message for ack in remaining]
        first = remaining[0]
        if acknowledge_in_bulk(channel, messages, first.shortcuts, has_loop=first.has_loop):
            continue
        for ack in remaining:
            try:
                ack.acknowledge_separately()
            except OSError:
                raise
            except Exception as exc:
                error = error or exc
    if error is not None:
        raise error
