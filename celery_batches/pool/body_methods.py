"""The methods of a task that the body calls, for all requests or for one. Runs in the pool.

Outside of a batch, each of them calls Celery's own method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from celery import Task
from celery.app.task import Context
from celery.exceptions import Retry

from ..core.batch_info import BatchInfo
from ..core.slot import slot_of
from ..request import SimpleRequest
from .context import acting_as, coroutine_context, member_of
from .retries import retry_all, retry_member
from .running import enclosing_batch, running_batch

__all__ = ("NO_BATCH", "BodyMethods")

OWN_ARGUMENTS = (
    "%s: self.retry() retries every request of the batch, each with its own arguments; for other "
    "arguments use request.retry(args=..., kwargs=...)"
)


NO_BATCH = (
    "Task %r: self.batch is the batch that runs, and no batch of this task runs in this thread. In "
    "a helper thread of the body, use it inside `with request.context()`"
)


class BodyMethods(Task):  # type: ignore[misc]  # celery is not typed
    """Overrides the methods that act on the current request, so that they act on a batch."""

    abstract = True

    @property
    def request(self) -> Context:
        """The context of the current request. Coroutines of one thread may have different ones."""
        return coroutine_context(self) or super().request

    @property
    def batch(self) -> BatchInfo:
        """The batch that runs, with its id, why it was flushed, its size and how long it waited.

        It is there in the body, in handlers and in signals, and in other threads inside
        ``request.context()``.

        Raises:
            AttributeError: If no batch of this task runs.
        """
        member = member_of(self)
        batch = enclosing_batch(self) if member is None else slot_of(member).batch
        if batch is None:
            raise AttributeError(NO_BATCH % self.name)
        return batch.info

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: Exception | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Retry every request of the batch that has no outcome yet, under its own id.

        To retry only some requests, call the ``retry()`` of each of them.

        Arguments:
            args: Refused for a batch, since each request keeps its own arguments.
            kwargs: Refused for a batch.
            exc: The reason. Requests whose retries are exhausted fail with it. Without it, they
                fail with ``MaxRetriesExceededError``.
            throw: Whether to raise the ``Retry``, which ends the body, or to return it.
            eta: When to run the requests.
            countdown: Seconds until the retry. Defaults to ``default_retry_delay``.
            max_retries: The limit for this retry. Defaults to the limit of the task.
            **options: Other calling options, such as ``queue`` or ``priority``.

        Raises:
            celery.exceptions.Retry: Unless ``throw`` is false.
            TypeError: If ``args`` or ``kwargs`` are given for a batch.
        """
        options.update(exc=exc, eta=eta, countdown=countdown, max_retries=max_retries)
        member, batch = member_of(self), running_batch(self)
        if member is not None:
            reason = retry_member(self, member, args, kwargs, options)
        elif batch is None:
            return super().retry(args, kwargs, throw=throw, **options)
        elif args is not None or kwargs is not None:
            raise TypeError(OWN_ARGUMENTS % self.name)
        else:
            reason = retry_all(self, batch.unsettled(), options)
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
        """Publish one request of a batch again, by Celery's own ``Task.retry``.

        The pool calls it for ``request.retry()`` and for `retry`, after the body has ended.

        Arguments:
            request: The request.
            args: Positional arguments of the retry. Defaults to those of the request.
            kwargs: Keyword arguments of the retry. Defaults to those of the request.
            **options: The other arguments of ``Task.retry``.

        Raises:
            celery.exceptions.MaxRetriesExceededError: If the retries are exhausted and there is no
                ``exc``. With ``exc``, that exception is raised.
            celery.exceptions.Reject: If the message cannot be published.
        """
        if args is not None or kwargs is not None:
            args = request.args if args is None else args
            kwargs = request.kwargs if kwargs is None else kwargs
        with acting_as(self, request):
            try:
                return super().retry(args, kwargs, throw=False, **options)
            finally:
                # Celery leaves the limit of this one retry on the task, for `autoretry_for`.
                self.__dict__.pop("override_max_retries", None)

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Store a custom state for one request of the batch, or for all without an outcome.

        Arguments:
            task_id: Id of the request. Defaults to all requests that have no outcome yet.
            state: Name of the state, such as ``"PROGRESS"``.
            meta: The metadata of the state.
            **kwargs: Other arguments of the result backend's ``store_result``.
        """
        member = member_of(self)
        batch = running_batch(self) if member is None else slot_of(member).batch
        if batch is None or (task_id is not None and task_id not in batch.by_id):
            super().update_state(task_id, state, meta, **kwargs)
        elif task_id is not None:
            batch.update_state(batch.by_id[task_id], state, meta, **kwargs)
        else:
            for request in batch.unsettled() if member is None else [member]:
                batch.update_state(request, state, meta, **kwargs)

    def send_event(
        self,
        type_: str,
        retry: bool = True,
        retry_policy: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Send a custom event for each request of the batch.

        Arguments:
            type_: Type of the event, such as ``"task-progress"``.
            retry: Whether to retry when the connection is lost.
            retry_policy: The policy of these retries. Defaults to ``task_publish_retry_policy``.
            **fields: Fields of the event. With ``uuid``, the id of a request, the event is sent for
                that request only.
        """
        batch = running_batch(self)
        if batch is None:
            super().send_event(type_, retry, retry_policy, **fields)
            return
        only = fields.pop("uuid", None)
        for request in batch.active if only is None else batch.requests:
            if only in (None, request.id):
                with acting_as(self, request):
                    super().send_event(type_, retry, retry_policy, **fields)
