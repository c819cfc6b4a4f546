"""Messages that are for no task that the worker has. Runs in the worker's main process."""

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
    """The worker's consumer, as far as it refuses messages."""

    strategies: dict[str, Any]
    connection_errors: tuple[type[BaseException], ...]

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> Any:
        """Refuse a message for a task that the worker does not have, and log it."""


class Strategies(dict[str, Any]):
    """The worker's strategies, by name of task: it also knows what to do with any other name.

    Such a message never comes to a batch task. It has to be stopped here, since in Celery (5.7 and
    before) a name that is not hashable, or an unknown task without an id, ends the worker: with
    it what is buffered is delivered again, and the message too, to end the next worker. The table
    is where Celery looks first, and ``Consumer.Strategies`` says that it may be of any class.

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
        """Have Celery say that it does not know the task."""
        if message.body is None:
            message.body = b""  # Celery's line in the log says how long it is.
        if isinstance(reason, TypeError):
            raise InvalidTaskError("the name of a task must be a string") from reason
        try:
            self._consumer.on_unknown_task(None, message, reason)
        except (*MALFORMED_MESSAGE_ERRORS, ContentDisallowed, DecodeError) as exc:
            # The line is in the log by now.
            logger.debug("Cannot tell the caller of an unknown task: %r", exc, exc_info=True)
            if not message.acknowledged:
                message.reject_log_error(logger, self._consumer.connection_errors)
