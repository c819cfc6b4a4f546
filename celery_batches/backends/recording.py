"""A result backend that stores nothing, for tests. It reports what the main process ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.base import DisabledBackend
from celery.exceptions import TaskRevokedError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("RecordingBackend",)


class RecordingBackend(DisabledBackend):  # type: ignore[misc]  # celery is not typed
    """Stands in for the result backend of a task.

    Arguments:
        app: The app of the task.
        record: Called with the id of each call that the main process ends, its state and its
            exception.
    """

    def __init__(self, app: Celery, record: Callable[[str, str, BaseException], None]) -> None:
        super().__init__(app)
        self._record = record

    def mark_as_failure(self, task_id: str, exc: BaseException, *_: Any, **options: Any) -> None:
        """Report a failure."""
        self._record(task_id, states.FAILURE, exc)

    def mark_as_revoked(self, task_id: str, reason: str = "", *_: Any, **options: Any) -> None:
        """Report that a call was revoked, or has expired."""
        self._record(task_id, states.REVOKED, TaskRevokedError(reason))
