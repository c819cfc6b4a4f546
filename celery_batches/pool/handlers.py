"""Calls the handlers of a task and sends its signals, for one request. Runs in the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app.trace import task_has_custom
from celery.exceptions import Retry
from celery.utils.log import get_logger

from ..request import SimpleRequest
from .context import acting_as

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("Handlers",)

logger = get_logger(__name__)

HANDLER_NAMES = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


@dataclass(frozen=True, slots=True)
class Handlers:
    """The handlers of one task.

    Attributes:
        task: The batch task.
        names: The handlers that the task overrides. Celery's own do nothing.
        raises: Whether to raise an error of a handler. Otherwise it is logged, and the outcome of
            the request does not change.
    """

    task: Batches
    names: frozenset[str] = frozenset()
    raises: bool = False

    @classmethod
    def of(cls, task: Batches, *, raises: bool) -> Handlers:
        """Return the handlers of a task."""
        return cls(
            task, frozenset(name for name in HANDLER_NAMES if task_has_custom(task, name)), raises
        )

    def __bool__(self) -> bool:
        return bool(self.names)

    def before_start(self, request: SimpleRequest) -> None:
        """Call ``before_start``.

        Raises:
            Exception: Whatever the handler raises. The request does not run then.
        """
        if "before_start" in self.names:
            with acting_as(self.task, request):
                self.task.before_start(request.id, request.args, request.kwargs)

    def on_success(self, request: SimpleRequest, value: Any) -> None:
        """Call ``on_success`` and ``after_return``."""
        if self.names:
            self._call(request, "on_success", (value,))
            self._call(request, "after_return", (states.SUCCESS, value), (None,))

    def on_failure(self, request: SimpleRequest, exc: BaseException, einfo: ExceptionInfo) -> None:
        """Call ``on_failure`` and ``after_return``."""
        self._call(request, "on_failure", (exc,), (einfo,))
        self._call(request, "after_return", (states.FAILURE, exc), (einfo,))

    def on_retry(self, request: SimpleRequest, reason: Retry, einfo: ExceptionInfo) -> None:
        """Call ``on_retry``, and send ``task_retry``."""
        self._call(request, "on_retry", (reason.exc,), (einfo,))
        if signals.task_retry.receivers:
            with acting_as(self.task, request) as context:
                signals.task_retry.send(
                    sender=self.task, request=context, reason=reason, einfo=einfo
                )

    def send_failure(
        self, request: SimpleRequest, exc: BaseException, einfo: ExceptionInfo
    ) -> None:
        """Send ``task_failure`` for a request that has failed with its own exception."""
        if signals.task_failure.receivers:
            with acting_as(self.task, request):
                signals.task_failure.send(
                    sender=self.task,
                    task_id=request.id,
                    exception=exc,
                    args=request.args,
                    kwargs=request.kwargs,
                    traceback=exc.__traceback__,
                    einfo=einfo,
                )

    def _call(
        self,
        request: SimpleRequest,
        name: str,
        before: tuple[Any, ...],
        after: tuple[Any, ...] = (),
    ) -> None:
        """Call a handler with ``before``, then id and arguments of the request, then ``after``."""
        if name not in self.names:
            return
        handler = getattr(self.task, name)
        try:
            with acting_as(self.task, request):
                handler(*before, request.id, request.args, request.kwargs, *after)
        except Exception as exc:
            if self.raises:
                raise
            logger.exception("%s of %s raised: %r", name, request, exc)
