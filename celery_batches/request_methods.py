"""The methods by which the body gives a request its outcome. Used in the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from numbers import Real
from typing import TYPE_CHECKING, Any

from .core.outcomes import Done, Failed, Outcome, Rejected, Retried
from .core.slot import OutcomeSlot, RunningBatch, slot_of

if TYPE_CHECKING:
    from celery.app.task import Context

__all__ = ("RequestMethods",)


class RequestMethods:
    """The methods of `celery_batches.SimpleRequest` that act on its running batch."""

    #: The slot for its outcome. A batch sets it before it runs.
    outcome_slot: OutcomeSlot[Any] | None = None

    def mark_as_done(self, result: Any = None) -> None:
        """Mark this call as successful, as if it were a task that returns this result.

        The mark takes effect when the body ends, also if the body raises. Then the worker stores
        the result and sends the continuations of the call: its ``link``, the next task of its chain
        and its part of a chord. The first outcome of a request wins. Later ones are ignored.

        You may call this from any thread.

        Arguments:
            result: The result of the call.

        Raises:
            RuntimeError: If the batch has ended.
        """
        self._record(Done(result))

    def mark_as_failure(self, exc: Exception) -> None:
        """Mark this call as failed, as if it were a task that raises this exception.

        See `mark_as_done` for when it takes effect.

        Arguments:
            exc: The exception that ``get()`` of the result raises.

        Raises:
            RuntimeError: If the batch has ended.
            TypeError: If it is not an exception.
        """
        if not isinstance(exc, Exception):
            raise TypeError(
                f"{self!r}: mark_as_failure() takes an exception, such as ValueError('no such "
                f"user'), not {exc!r}"
            )
        self._record(Failed(exc))

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: Exception | None = None,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> None:
        """Retry this call under its own id, as ``Task.retry`` does.

        See `mark_as_done` for when it takes effect.

        Arguments:
            args: Positional arguments of the retry. Defaults to those of the call.
            kwargs: Keyword arguments of the retry. Defaults to those of the call.
            exc: The reason. If the retries are exhausted, the call fails with it. Without it, the
                call fails with ``MaxRetriesExceededError``.
            eta: When to run the call.
            countdown: Seconds until the retry. Defaults to the ``default_retry_delay`` of the task.
            max_retries: The limit for this retry. Defaults to the limit of the task.
            **options: Other calling options, such as ``queue`` or ``priority``.

        Raises:
            RuntimeError: If the batch has ended.
            TypeError: If ``exc`` is not an exception or ``countdown`` is not a number.
        """
        if exc is not None and not isinstance(exc, Exception):
            raise TypeError(f"{self!r}: exc of retry() must be an exception, not {exc!r}")
        if countdown is not None and not isinstance(countdown, Real):
            raise TypeError(
                f"{self!r}: countdown of retry() must be a number of seconds, not {countdown!r}"
            )
        options.pop("throw", None)  # An argument of `Task.retry`. This method never raises `Retry`.
        given: dict[str, Any] = {"args": args, "kwargs": kwargs, "eta": eta, "countdown": countdown}
        given["max_retries"] = max_retries
        self._record(Retried(exc, {**given, **options}))

    def reject(self, requeue: bool = False) -> None:
        """Reject the message of this call, as if it were a task that raises ``Reject``.

        See `mark_as_done` for when it takes effect. It needs ``acks_late``. Without it, the message
        has been acknowledged before the body runs.

        Arguments:
            requeue: Whether to requeue the message. If not, the broker drops it, or sends it to the
                dead-letter exchange of its queue.

        Raises:
            RuntimeError: If the batch has ended.
        """
        self._record(Rejected(requeue=bool(requeue)))

    def update_state(self, state: str, meta: Any = None) -> None:
        """Store a custom state for this call now, as ``Task.update_state`` does.

        Arguments:
            state: Name of the state, such as ``"PROGRESS"``.
            meta: The metadata of the state.

        Raises:
            RuntimeError: If the batch does not run.
        """
        self._running_batch("update_state()").update_state(self, state, meta)

    def context(self) -> AbstractContextManager[Context]:
        """Return a context manager in which this call is ``current_task.request``.

        Inside, the methods of the task act on this call alone. Tasks that are sent have it as their
        parent. ``self.retry()`` marks this call for a retry, and leaves the ``with`` statement. You
        may use it in any thread.

        Raises:
            RuntimeError: If the batch does not run.
        """
        return self._running_batch("context()").acting_as(self)

    def _running_batch(self, method: str) -> RunningBatch[Any]:
        batch = slot_of(self).batch
        if batch is None:
            raise RuntimeError(f"{self!r}: {method} works while the body of its batch runs")
        return batch

    def _record(self, outcome: Outcome) -> None:
        slot = slot_of(self)
        # Checked twice, since the batch may end in between.
        if (slot.closed or not slot.record(outcome)) and slot.closed:
            raise RuntimeError(
                f"{self!r}: its batch has ended, so it cannot become {outcome.kind}. Mark it "
                f"before the body of the task returns"
            )
