"""`Batches`, the base class of batch tasks: its options and its methods. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Retry
from celery.result import EagerResult
from celery.utils.functional import maybe_list
from kombu.utils.uuid import uuid

from .options import (
    FLUSH_EVERY,
    FLUSH_INTERVAL,
    REMOVED,
    check_body,
    check_flush_every,
    check_flush_interval,
    check_removed,
    is_computed,
)
from .pool.body import keep_body
from .pool.running import running_batch
from .request import SimpleRequest

__all__ = ("Batches",)

#: By name, and other modules imported late: a client that only sends calls has no use for what
#: runs in the worker.
BATCHES_STEP = "celery_batches.worker.bootstep:BatchesStep"


class Batches(Task):  # type: ignore[misc]  # celery is not typed
    """Base class of tasks whose calls are collected in the worker and run together.

    The body takes one argument, a list of `SimpleRequest`, one for each call::

        @app.task(base=Batches, flush_every=100, flush_interval=10)
        def count_click(requests): ...

    Raises:
        celery.exceptions.ImproperlyConfigured: From the definition of a task, if one of the
            options below makes no sense.
    """

    abstract = True

    #: Whether calls are checked against the signature of the body. Their arguments are not for it.
    typing = False

    #: The number of requests in a full batch, an int of at least 1. May be a property, and may be
    #: set while the worker runs: it is read for each request.
    flush_every: int = FLUSH_EVERY

    #: How long a request waits for its batch to fill, in seconds or as a ``datetime.timedelta``.
    #: May be a property, and may be set while the worker runs: it is read for each request.
    flush_interval: Any = FLUSH_INTERVAL

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._check_options()

    def __getattr__(self, name: str) -> Any:
        # Only called for what the task does not have.
        hint = f": {REMOVED[name]}" if name in REMOVED else ""
        raise AttributeError(f"Task {self.name!r} has no attribute {name!r}{hint}", name=name)

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Bind the class to an app (Celery does, when the task is created)."""
        bound = super().bind(app)
        # By now ``task_annotations`` have been applied.
        cls._check_options()
        app.steps["consumer"].add(BATCHES_STEP)
        app.on_after_finalize.connect(_keep_bodies)
        return bound

    @classmethod
    def _check_options(cls) -> None:
        name = cls.name or f"{cls.__module__}.{cls.__qualname__}"
        for value, check in (
            (cls.flush_every, check_flush_every),
            (cls.flush_interval, check_flush_interval),
        ):
            if not is_computed(value):
                check(name, value)
        check_body(name, cls.run)
        check_removed(cls)

    @property
    def flush_interval_seconds(self) -> float:
        """`flush_interval` in seconds."""
        return check_flush_interval(self.name, self.flush_interval)

    def run(self, requests: list[SimpleRequest]) -> Any:
        """Process the requests: the body of the task, which each batch task defines.

        Arguments:
            requests: The batch, in order of arrival.

        Returns:
            Anything. Signals and the log show it. It is not the result of any request.
        """
        raise NotImplementedError(f"{self.name} must define run(self, requests)")

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

        Each has its own count of retries; those that are over the limit fail, alone. To retry just
        some of the requests, use their own ``retry()``.

        Arguments:
            args: Not for a batch: its requests have arguments of their own.
            kwargs: Not for a batch.
            exc: Why. It is what requests over the limit fail with; without it, that is
                ``MaxRetriesExceededError``.
            throw: Whether to raise `celery.exceptions.Retry`, so that the body ends here.
            eta: The ``datetime.datetime`` to run them at.
            countdown: Seconds to wait for the retry. Defaults to ``default_retry_delay``.
            max_retries: The limit, this time. Defaults to that of the task.
            **options: Other calling options, such as ``queue`` or ``priority``.

        Returns:
            The exception, if it is not raised.

        Raises:
            celery.exceptions.Retry: Unless ``throw`` is false.
            TypeError: If there are ``args`` or ``kwargs``.
        """
        given = {"exc": exc, "eta": eta, "countdown": countdown, "max_retries": max_retries}
        given.update(options)
        batch = running_batch(self)
        if batch is None:
            return super().retry(args, kwargs, throw=throw, **given)
        if args is not None or kwargs is not None:
            raise TypeError(
                f"{self.name}: self.retry() retries every request of the batch, each with its own "
                f"arguments; for other arguments use request.retry(args=..., kwargs=...)"
            )
        from .pool.retries import retry_all

        reason = retry_all(self, batch.requests, given)
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
        from .pool.context import acting_as

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
        from .pool.context import acting_as

        batch = running_batch(self)
        if batch is None:
            super().send_event(type_, retry, retry_policy, **fields)
            return
        only = fields.pop("uuid", None)
        for request in batch.requests:
            if only in (None, request.id):
                with acting_as(self, request):
                    super().send_event(type_, retry, retry_policy, **fields)

    def replace(self, sig: Any) -> NoReturn:
        """Not supported: one signature cannot stand for all the calls of a batch.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{self.name}: a batch cannot be replaced by {sig!r}; send what is to follow each call "
            f"as its link or the next task of a chain, and use request.mark_as_done(result)"
        )

    def add_to_chord(self, sig: Any, lazy: bool = False) -> NoReturn:
        """Not supported: the requests of a batch may be in different chords, or in none.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{self.name}: {sig!r} cannot be added to the chord of a batch, whose requests may be "
            f"in different chords or in none"
        )

    def map(self, it: Any) -> NoReturn:
        """Not supported: it would run the body on bare arguments, in one task.

        Raises:
            NotImplementedError: Always. It says what to do instead.
        """
        raise self._no_loop("map")

    def starmap(self, it: Any) -> NoReturn:
        """Not supported, as `map`.

        Raises:
            NotImplementedError: Always. It says what to do instead.
        """
        raise self._no_loop("starmap")

    def chunks(self, it: Any, n: int) -> NoReturn:
        """Not supported, as `map`.

        Raises:
            NotImplementedError: Always. It says what to do instead.
        """
        raise self._no_loop("chunks")

    def _no_loop(self, name: str) -> NotImplementedError:
        return NotImplementedError(
            f"{self.name}: {name}() runs a task in a loop, one item at a time, and a batch task "
            f"takes many at once; use group({self.name}.s(item) for item in items)()"
        )

    def Strategy(self, task: Batches, app: Any, consumer: Any) -> Callable[..., Any]:
        """Return the worker's handler of messages for this task (Celery calls it).

        Arguments:
            task: This task.
            app: The Celery app.
            consumer: The worker's ``celery.worker.consumer.Consumer``.
        """
        from .worker.strategy import BatchStrategy, strategy_of

        old = strategy_of(consumer, task.name)
        if old is None:
            # Later, what makes no sense must not end a worker that runs: it is logged.
            self._check_options()
        keep_body(task)
        strategy = BatchStrategy(task, app, consumer, old=old)
        if old is not None:
            old.hand_over(strategy)
        return strategy.on_message

    def flush(self, requests: Iterable[Any]) -> Any:
        """Send requests to the worker's pool as one batch.

        The worker calls this for each batch; a subclass may extend it. Requests that an override
        has not passed on when it returns are acknowledged and ignored, with a warning; those that
        it has acknowledged or rejected, without one. If it passes them on later, they still run. If
        it raises, those that it has not passed on fail with that exception.

        Arguments:
            requests: The ``celery.worker.request.Request`` of each member, as the worker buffered
                them. Each runs once, also if it is passed on again.

        Raises:
            ValueError: If they are not requests that a worker has buffered for this task.
        """
        return self.apply_buffer(requests)

    def apply_buffer(
        self, requests: Iterable[Any], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Send requests to the worker's pool as one batch, as `flush` does.

        Arguments:
            requests: The ``celery.worker.request.Request`` of each member.
            args: Positional arguments for the body, if it shall not be just the list of requests.
                Each `SimpleRequest` in them, made by ``SimpleRequest.from_request``, stands for its
                request: what the body marks it as counts. Those that were revoked or have expired
                are left out of lists, tuples, sets and dictionaries.
            kwargs: Not used; there for the signature of 0.1.

        Raises:
            ValueError: If they are not requests that a worker has buffered for this task, or there
                is a `SimpleRequest` in ``args`` that is none of them.
        """
        members = requests if isinstance(requests, Sequence) else list(requests)
        if not members:
            return None
        from .worker.sender import sender_for

        return sender_for(self.name, members).dispatch(members, tuple(args) or None)

    def apply(
        self,
        args: Any = None,
        kwargs: Any = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int | None = None,
        throw: bool | None = None,
        logfile: str | None = None,
        loglevel: int | None = None,
        headers: Any = None,
        **options: Any,
    ) -> EagerResult:
        """Run one call here and now, as a batch of one, and wait for it.

        Arguments:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
            link: Callbacks of the call.
            link_error: Error callbacks of the call.
            task_id: Id of the call.
            retries: How often the call has been retried.
            throw: Whether to raise what the body raises. Defaults to ``task_eager_propagates``.
            logfile: For ``task.request.logfile``.
            loglevel: For ``task.request.loglevel``.
            headers: Custom headers of the call.
            **options: Other calling options.

        Returns:
            What the body has marked the call with, or else what it returned.
        """
        from .eager import apply_eagerly

        app = self._get_app()
        return apply_eagerly(
            app.tasks[self.name],
            task_id or uuid(),
            args or (),
            kwargs or {},
            propagate=app.conf.task_eager_propagates if throw is None else throw,
            loglevel=loglevel or 0,
            logfile=logfile,
            callbacks=maybe_list(link),
            errbacks=maybe_list(link_error),
            retries=retries or 0,
            headers=headers,
            **options,
        )


def _keep_bodies(sender: Any, **_: Any) -> None:
    """Keep the body of each batch task, when Celery has completed it and no tool has seen it."""
    for task in sender.tasks.values():
        if isinstance(task, Batches):
            keep_body(task)
