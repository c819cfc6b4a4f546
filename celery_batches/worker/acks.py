"""Acknowledges the messages of a batch together. Runs in the worker's main process.

A request is still acknowledged by Celery's own ``Request.acknowledge``, which calls the ``on_ack``
that it was made with: here a `DeferredAck`. While a batch notifies its requests, these are
collected, and then done as one operation of the event loop instead of one for each message.

Shortcut ``lean_promises``: that, and less memory for each buffered message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from threading import local
from typing import Any, ClassVar

from vine import promise

from ..core.shortcuts import SHORTCUTS, Shortcut
from ..transports.bulk_acks import acknowledge_in_bulk

__all__ = ("DeferredAck", "LeanPromise", "collect_acks")


class _Collection(local):
    #: What is collected in this thread or greenlet, if anything is.
    acks: list[DeferredAck] | None = None


_collection = _Collection()


class LeanPromise:
    """A compact stand-in for Celery's one-argument promise.

    Celery gives two promises to the strategy for each message, and a buffer keeps many. Nearly all
    of them just call a function with one argument: this keeps the two, and makes the promise again
    for whoever wants more of it, for example to add something with `then`.

    Arguments:
        given: A promise to call a method of the message when the event loop comes round to it. It
            is kept as it is if somebody waits for it, as Celery does to restore the prefetch count,
            and if it is none of those that are known here.
    """

    __slots__ = ("_call", "_on_error", "_promise", "_soon")

    def __init__(self, given: Any) -> None:
        # Each message costs two of these.
        try:
            if type(given) is promise and len(given.args) == 1 and given.listeners[0] is None:
                self._soon, self._call, self._on_error = given.fun, given.args[0], given.on_error
                self._promise: Any = None
                return
        except (AttributeError, LookupError, TypeError):
            pass  # It is not the promise of vine that is known here.
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


class DeferredAck(LeanPromise):
    """What acknowledges the message of one request: together with its batch, if it can be.

    Arguments:
        given: The promise that acknowledges the message.
    """

    __slots__ = ("errors", "logger")

    #: The shortcuts that are switched on.
    shortcuts: ClassVar[Collection[Shortcut]] = SHORTCUTS

    @classmethod
    def with_shortcuts(cls, enabled: Collection[Shortcut]) -> type[DeferredAck]:
        """Return this class for an app that has just these shortcuts switched on."""
        if enabled == cls.shortcuts:
            return cls
        return type(cls.__name__, (cls,), {"__slots__": (), "shortcuts": enabled})

    def __call__(self, logger: Any, errors: Any) -> Any:
        """Acknowledge now, or defer to the enclosing `collect_acks`."""
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
def collect_acks() -> Iterator[None]:
    """Collect what this thread or greenlet acknowledges, and then do it at once."""
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
    """Acknowledge messages, in order; what fails is delivered again, as always.

    Raises:
        Exception: The first that kombu raises instead of logging it. It does not keep the others
            from being acknowledged, unless it says that the connection is gone.
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
                ack.alone()
            except OSError:
                raise
            except Exception as exc:
                error = error or exc
    if error is not None:
        raise error
