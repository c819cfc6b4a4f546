"""`Batches`, the base class of batch tasks: its options and its methods. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from celery import Task
from celery.result import EagerResult
from celery.utils.functional import maybe_list
from kombu.utils.uuid import uuid

from .options import check_flush_every, check_flush_interval
from .request import SimpleRequest

__all__ = ("Batches",)

#: By name, and other modules imported late: a client that only sends calls has no use for what
#: runs in the worker.
BATCHES_STEP = "celery_batches.strategy:BatchesStep"


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

    #: The number of requests in a full batch, an int of at least 1.
    flush_every: int = 10

    #: How long a request waits for its batch to fill, in seconds or as a ``datetime.timedelta``.
    flush_interval: Any = 30

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._check_options()

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Bind the class to an app (Celery does, when the task is created)."""
        bound = super().bind(app)
        # By now ``task_annotations`` have been applied.
        cls._check_options()
        app.steps["consumer"].add(BATCHES_STEP)
        return bound

    @classmethod
    def _check_options(cls) -> None:
        name = cls.name or f"{cls.__module__}.{cls.__qualname__}"
        check_flush_every(name, cls.flush_every)
        check_flush_interval(name, cls.flush_interval)

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

    def retry(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: a batch is not one call that could be sent again.

        Raises:
            NotImplementedError: Always. It says what to do instead.
        """
        raise NotImplementedError(
            f"{self.name}: a batch has no retry(); send a call again under its own id with "
            f"{self.name}.apply_async(request.args, request.kwargs, task_id=request.id, "
            f"countdown=...)"
        )

    def replace(self, sig: Any) -> NoReturn:
        """Not supported: one signature cannot stand for all the calls of a batch.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{self.name}: a batch cannot be replaced by {sig!r}")

    def Strategy(self, task: Batches, app: Any, consumer: Any) -> Callable[..., Any]:
        """Return the worker's handler of messages for this task (Celery calls it).

        Arguments:
            task: This task.
            app: The Celery app.
            consumer: The worker's ``celery.worker.consumer.Consumer``.
        """
        from .strategy import BatchStrategy, strategy_of

        self._check_options()
        strategy = BatchStrategy(task, app, consumer)
        old = strategy_of(consumer, task.name)
        if old is not None:
            strategy.take_over(old)
        return strategy.on_message

    def flush(self, requests: Collection[Any]) -> Any:
        """Send requests to the worker's pool as one batch.

        The worker calls this for each batch; a subclass may extend it.

        Arguments:
            requests: The ``celery.worker.request.Request`` of each member, as the worker buffered
                them.

        Raises:
            ValueError: If they are not a worker's buffered requests.
        """
        return self.apply_buffer(requests)

    def apply_buffer(
        self, requests: Collection[Any], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Send requests to the worker's pool as one batch, as `flush` does.

        Arguments:
            requests: The ``celery.worker.request.Request`` of each member.
            args: Positional arguments for the body, if it shall not be just the list of requests.
            kwargs: Not used; there for the signature of 0.1.
        """
        if not requests:
            return None
        strategy = getattr(next(iter(requests)), "batch_strategy", None)
        if strategy is None:
            raise ValueError(
                f"{self.name}: only requests that a worker has buffered can be flushed; "
                f"use apply_async() to send a call, or apply() to run one here"
            )
        return strategy.dispatch(requests, tuple(args) or None)

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
