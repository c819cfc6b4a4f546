"""`Batches`, the base class of batch tasks: its options and its methods. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
from .pool.body_methods import BodyMethods
from .request import SimpleRequest
from .unsupported import UnsupportedMethods

__all__ = ("Batches",)

#: By name, and other modules imported late: a client that only sends calls has no use for what
#: runs in the worker.
BATCHES_STEP = "celery_batches.worker.bootstep:BatchesStep"


class Batches(BodyMethods, UnsupportedMethods):
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
            logfile: For ``task.request``.
            loglevel: For ``task.request``.
            headers: Custom headers of the call.
            **options: Other calling options.

        Returns:
            What the body has marked the call with, or else what it returned.
        """
        from .eager import apply_eagerly

        task = self._get_app().tasks[self.name]
        calls = {"callbacks": maybe_list(link), "errbacks": maybe_list(link_error)}
        context = {**calls, "retries": retries or 0, "headers": headers, **options}
        how: dict[str, Any] = {"throw": throw, "loglevel": loglevel or 0, "logfile": logfile}
        return apply_eagerly(task, task_id or uuid(), args or (), kwargs or {}, context, **how)


def _keep_bodies(sender: Any, **_: Any) -> None:
    """Keep the body of each batch task, when Celery has completed it and no tool has seen it."""
    for task in sender.tasks.values():
        if isinstance(task, Batches):
            keep_body(task)
