"""Refuses messages for unknown tasks. Runs in the worker's main process."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from kombu import Message
from kombu.exceptions import ContentDisallowed, DecodeError

from .checks import MALFORMED_MESSAGE_ERRORS

__all__ = ("Strategies",)

logger = get_logger(__name__)


class RefusingConsumer(Protocol):
    """The part of the worker's consumer that refuses messages."""

    strategies: dict[str, Any]
    connection_errors: tuple[type[BaseException], ...]

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> Any:
        """Refuse a message for a task that the worker does not have, and log it."""


class Strategies(dict[str, Any]):
    """The worker's strategies, by name of task. For any other name, it refuses the message.

    In Celery (5.7 and older), two kinds of messages stop the worker: one whose task name is not
    hashable, and one for an unknown task without an id. The broker then redelivers the buffered
    messages, and this message too, which stops the next worker. Celery looks up each name here
    first, and ``Consumer.Strategies`` allows any class.

    Arguments:
        consumer: The worker's consumer.
    """

    def __init__(self, consumer: RefusingConsumer) -> None:
        super().__init__(consumer.strategies)
        self._consumer = consumer

    def __getitem__(self, name: Any) -> Any:
        try:
            return super().__getitem__(name)
        except (KeyError, TypeError) as exc:
            return partial(self._refuse, exc)

    def _refuse(self, reason: Exception, message: Message, *_: Any) -> None:
        """Refuse a message as Celery does for an unknown task."""
        if message.body is None:
            message.body = b""  # Celery logs its length.
        if isinstance(reason, TypeError):
            raise InvalidTaskError("the name of a task must be a string") from reason
        try:
            self._consumer.on_unknown_task(None, message, reason)
        except (*MALFORMED_MESSAGE_ERRORS, ContentDisallowed, DecodeError) as exc:
            # Celery has written its log line before the error.
            logger.debug("Cannot notify the caller of an unknown task: %r", exc, exc_info=True)
            if not message.acknowledged:
                message.reject_log_error(logger, self._consumer.connection_errors)
