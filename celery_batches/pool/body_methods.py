"""What the body of a batch calls of its task: for all requests, or for one. Runs in the pool.

In a context that is not that of a batch, all of these do what Celery's do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Task
from celery.exceptions import Retry

from ..request import SimpleRequest
from .context import acting_as
from .retries import retry_all
from .running import running_batch

__all__ = ("BodyMethods",)


OWN_ARGUMENTS = (
    "%s: self.retry() retries every request of the batch, each with its own arguments; for other "
    "arguments use request.retry(args=..., kwargs=...)"
)


class BodyMethods(Task):  # type: ignore[misc]  # celery is not typed
    """The methods of a task that are about its current request, for a batch of them."""

    abstract = True

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: Exception | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Retry every request of the batch that has no outcome yet: each under its own id.

        Requests over the limit fail. To retry only some, call ``retry()`` of each.

        Arguments:
            args: Not for a batch: its requests have arguments of their own.
            kwargs: Not for a batch.
            exc: Why. Requests over the limit fail with it, or with ``MaxRetriesExceededError``.
            throw: Whether to raise the ``Retry``, so that the body ends here, or to return it.
            eta: The ``datetime.datetime`` to run them at.
            countdown: Seconds to wait for the retry. Defaults to ``default_retry_delay``.
            max_retries: The limit, this time. Defaults to that of the task.
            **options: Other calling options, such as ``queue`` or ``priority``.

        Raises:
            celery.exceptions.Retry: Unless ``throw`` is false.
            TypeError: If there are ``args`` or ``kwargs``.
        """
        options.update(exc=exc, eta=eta, countdown=countdown, max_retries=max_retries)
        batch = running_batch(self)
        if batch is None:
            return super().retry(args, kwargs, throw=throw, **options)
        if args is not None or kwargs is not None:
            raise TypeError(OWN_ARGUMENTS % self.name)
        reason = retry_all(self, batch.requests, options)
        if throw:
            raise reason
        return reason

    def retry_request(
        self,
        request: SimpleRequest,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Retry:
        """Send one request of a batch again, by Celery's own ``Task.retry``.

        This is what ``request.retry()`` and `retry` come down to, when the body has ended.

        Arguments:
            request: The request.
            args: Positional arguments to retry with, if not the same again.
            kwargs: Keyword arguments to retry with, if not the same again.
            **options: The other arguments of ``Task.retry``.

        Raises:
            celery.exceptions.MaxRetriesExceededError: If it was retried often enough, and
                ``exc`` is not given; else that is raised.
            celery.exceptions.Reject: If it cannot be sent.
        """
        if args is not None or kwargs is not None:
            args = request.args if args is None else args
            kwargs = request.kwargs if kwargs is None else kwargs
        with acting_as(self, request):
            try:
                return super().retry(args, kwargs, throw=False, **options)
            finally:
                # Celery keeps the limit of one retry on the task, for ``autoretry_for``.
                self.__dict__.pop("override_max_retries", None)

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Set a state of your own for one request of the batch, or for all without an outcome.

        Arguments:
            task_id: Id of the request. Defaults to all requests that have no outcome yet.
            state: Name of the state, such as ``"PROGRESS"``.
            meta: What goes with it.
            **kwargs: Other arguments of the result backend's ``store_result``.
        """
        batch = running_batch(self)
        if batch is None or (task_id is not None and task_id not in batch.by_id):
            super().update_state(task_id, state, meta, **kwargs)
            return
        for request in batch.unsettled() if task_id is None else [batch.by_id[task_id]]:
            self.backend.store_result(request.id, meta, state, request=request, **kwargs)

    def send_event(
        self, type_: str, retry: bool = True, retry_policy: Any = None, **fields: Any
    ) -> None:
        """Send an event of your own for each request of the batch.

        Arguments:
            type_: Type of the event, such as ``"task-progress"``.
            retry: Whether to try again when the connection is lost.
            retry_policy: How. Defaults to ``task_publish_retry_policy``.
            **fields: What the event says. With ``uuid``, the id of a request, it is sent for that
                one only.
        """
        batch = running_batch(self)
        if batch is None:
            super().send_event(type_, retry, retry_policy, **fields)
            return
        only = fields.pop("uuid", None)
        for request in batch.requests:
            if only in (None, request.id):
                with acting_as(self, request):
                    super().send_event(type_, retry, retry_policy, **fields)
