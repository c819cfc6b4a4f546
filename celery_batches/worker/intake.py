"""Makes requests of messages, by Celery's default strategy. Runs in the worker's main process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from celery.worker.strategy import default as default_strategy
from kombu import Message

from ..core.shortcuts import Shortcut
from .acks import DeferredAck, LeanPromise
from .checks import MALFORMED_MESSAGE_ERRORS, check_message
from .eta import BufferingConsumer
from .member_request import MemberRequest

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("Intake",)

logger = get_logger(__name__)


class Intake:
    """Celery's default strategy of a batch task, which gets no malformed message.

    Arguments:
        task: The batch task.
        app: The Celery app.
        consumer: Gets the requests that are ready to run.
        shortcuts: The shortcuts that the setting ``batches_shortcuts`` enables.
    """

    def __init__(
        self,
        task: Batches,
        app: Celery,
        consumer: BufferingConsumer,
        shortcuts: frozenset[Shortcut],
    ) -> None:
        self._deferred_ack = (
            DeferredAck.with_shortcuts(shortcuts) if "lean_promises" in shortcuts else None
        )
        # INFO has one line for each batch. Lines for single requests are for debugging.
        self._receive = default_strategy(task, app, consumer, info=logger.debug)

    def __call__(
        self,
        message: Message,
        body: Any,
        ack: Callable[..., Any],
        reject: Callable[..., Any],
        callbacks: Sequence[Callable[[MemberRequest], Any]],
    ) -> Any:
        """Handle a message, with the signature of Celery's strategies.

        Raises:
            celery.exceptions.InvalidTaskError: If it is malformed. Celery then rejects it.
        """
        if message.body is None:
            message.body = b""  # Celery logs its length.
        try:
            check_message(message, body)
            if self._deferred_ack is not None:
                ack, reject = self._deferred_ack(ack), LeanPromise(reject)
            return self._receive(message, body, ack, reject, callbacks)
        except MALFORMED_MESSAGE_ERRORS as exc:
            if message.acknowledged:
                raise
            raise InvalidTaskError(f"{type(exc).__name__}: {exc}") from exc
