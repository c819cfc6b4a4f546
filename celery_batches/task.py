"""`Batches`, the base class of batch tasks: its options and methods. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery.result import EagerResult
from celery.utils.functional import maybe_list
from kombu.utils.uuid import uuid

from .client.methods import SendingMethods
from .core.keys import keep_partials
from .definition import REMOVED, check_body, check_names, check_removed, may_be_async
from .flush_values import FLUSH_EVERY, FLUSH_INTERVAL, FLUSH_KEYS, check_flush_interval
from .options import check_options
from .pool.body import keep_body
from .pool.body_methods import NO_BATCH, BodyMethods
from .request import SimpleRequest
from .unsupported import UnsupportedMethods

if TYPE_CHECKING:
    from celery import Celery, Signature
    from celery.worker.consumer import Consumer
    from celery.worker.request import Request

__all__ = ("Batches",)

#: A name and no import, so that a client that only sends calls does not import `worker/`. For the
#: same reason, methods import it late.
BATCHES_STEP = "celery_batches.worker.bootstep:BatchesStep"


class Batches(BodyMethods, SendingMethods, UnsupportedMethods):
    """Base class of tasks whose calls the worker buffers and runs together.

    The body takes one argument, a list with one `SimpleRequest` for each call::

        @app.task(base=Batches, flush_every=100, flush_interval=10)
        def count_click(requests): ...

    Raises:
        celery.exceptions.ImproperlyConfigured: When a task is defined with an option that cannot
            work.
    """

    abstract = True

    #: Whether Celery checks calls against the signature of the body. The body takes other arguments
    #: than a call, so it must not.
    typing = False

    #: The number of requests in a full batch, an int of at least 1. The worker reads it for each
    #: request. So it may be a property, and you may set it while the worker runs.
    flush_every: int = FLUSH_EVERY

    #: How long a request waits for its batch to fill, in seconds or as a ``datetime.timedelta``.
    #: The worker reads it for each request. So it may be a property, and you may set it while the
    #: worker runs.
    flush_interval: float | timedelta = FLUSH_INTERVAL

    #: A batch is flushed when no call has come for so long: seconds or a ``datetime.timedelta``,
    #: below ``flush_interval``. ``None`` means never. With ``flush_key``, each key has its own.
    flush_idle: float | timedelta | None = None

    #: A callable that takes a request and returns its key, or the name of a keyword argument. A
    #: batch has requests of one key only, and each key has its own ``flush_every`` and
    #: ``flush_interval``. The worker calls it for each request, in its main process, so it must be
    #: quick. If it raises, or returns a key that cannot be hashed, that call alone fails.
    flush_key: Callable[[SimpleRequest], Hashable] | str | None = None

    #: The most keys that are buffered at a time, an int of at least 1. When a call of one more
    #: comes, the key that has waited longest is flushed.
    flush_keys: int = FLUSH_KEYS

    #: A callable that takes a request and returns its weight, a number of at least 0; or
    #: ``"bytes"`` for the size of its message, as the broker has it. It runs where ``flush_key``
    #: does. Set ``flush_max_weight`` with it.
    flush_weight: Callable[[SimpleRequest], float] | str | None = None

    #: The most weight of a batch, a number above 0. A call that would exceed it is in the next
    #: batch. A call that is heavier is alone in its batch, and the worker logs a warning.
    flush_max_weight: float | None = None

    #: Whether the body returns the results, as a list or tuple with one item for each request, in
    #: order, or as a dict by request id. An item that is an exception fails its request, or retries
    #: it by ``autoretry_for``.
    return_results: bool = False

    #: Which exceptions of the body have it run again in halves, in the same process, until the
    #: requests that make it raise are alone: ``True``, an exception class or a tuple of them. Only
    #: these fail, or are retried by ``autoretry_for``. Requests with an outcome do not run again.
    bisect_on_failure: bool | type[Exception] | tuple[type[Exception], ...] = False

    #: A callable that takes a request and returns its key, or the name of a keyword argument. Of
    #: the requests of a batch with one key, the body gets only one. The others end as that one
    #: does.
    unique_key: Callable[[SimpleRequest], Any] | str | None = None

    #: ``"last"`` or ``"first"`` of the requests with one ``unique_key``. The body gets that one.
    unique_keep: str = "last"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_partials(cls, ("flush_key", "flush_weight", "unique_key"))
        cls._check_options()

    def __new__(cls, *args: Any, **kwargs: Any) -> Batches:
        """Make the task. An async body becomes a function that returns its result."""
        self: Batches = super().__new__(cls)
        if may_be_async(cls):
            # Not at the top: a client that has no such task need not import asyncio.
            from .pool.async_body import synchronous

            # Before Celery wraps it for `autoretry_for`.
            self.__dict__["run"] = synchronous(self, self.run)
        return self

    if not TYPE_CHECKING:  # For type checkers, an unknown name is an error.

        def __getattr__(self, name: str) -> Any:
            # Python calls this only if the task has no such attribute, or the property raises.
            if name == "batch":
                raise AttributeError(NO_BATCH % self.name, name=name)
            hint = f": {REMOVED[name]}" if name in REMOVED else ""
            raise AttributeError(f"Task {self.name!r} has no attribute {name!r}{hint}", name=name)

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Bind the class to an app. Celery calls it when it creates the task."""
        bound = super().bind(app)
        # Celery has applied `task_annotations` now.
        cls._check_options()
        app.steps["consumer"].add(BATCHES_STEP)
        app.on_after_finalize.connect(_keep_bodies)
        return bound

    @classmethod
    def _check_options(cls) -> None:
        name = cls.name or f"{cls.__module__}.{cls.__qualname__}"
        check_options(name, cls)
        check_names(name, cls)
        check_body(name, cls)
        check_removed(cls)

    @property
    def flush_interval_seconds(self) -> float:
        """`flush_interval` in seconds."""
        return check_flush_interval(self.name, self.flush_interval)

    def run(self, requests: list[SimpleRequest]) -> Any:
        """Process the requests. Each batch task defines this body, which may be ``async``.

        Arguments:
            requests: The batch, in order of arrival.

        Returns:
            With `return_results`, the result of each request. Otherwise anything: signals and the
            log show it, and it is not the result of any request.
        """
        raise NotImplementedError(f"{self.name} must define run(self, requests)")

    def Strategy(self, task: Batches, app: Celery, consumer: Consumer) -> Callable[..., Any]:
        """Return the worker's message handler for this task. Celery calls it.

        Arguments:
            task: This task.
            app: The Celery app.
            consumer: The worker's ``celery.worker.consumer.Consumer``.
        """
        from .pool.marking import intercept_new_backends
        from .worker.pools import check_pool
        from .worker.strategy import BatchStrategy, strategy_of

        intercept_new_backends(app)
        old = strategy_of(consumer, task.name)
        if old is None:
            # Only at the start. A bad value must not stop a running worker, which logs it instead.
            self._check_options()
            check_pool(task, consumer.pool)
        keep_body(task)
        strategy = BatchStrategy(task, app, consumer, old=old)
        if old is not None:
            old.hand_over(strategy)
        return strategy.on_message

    def flush(self, requests: Iterable[Request]) -> Any:
        """Send requests to the worker's pool as one batch.

        The worker calls this for each batch, and a subclass may override it. If an override returns
        without passing on some requests, the worker acknowledges and ignores them with a warning.
        There is no warning for requests that the override has acknowledged or rejected. If it
        passes requests on later, they still run. If it raises, the requests that it has not passed
        on fail with that exception.

        Arguments:
            requests: The ``celery.worker.request.Request`` of each member, as the worker buffered
                them. Each runs once, even if it is passed on twice.

        Raises:
            ValueError: If a worker has not buffered these requests for this task.
        """
        return self.apply_buffer(requests)

    def apply_buffer(
        self,
        requests: Iterable[Request],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Send requests to the worker's pool as one batch, as `flush` does.

        Arguments:
            requests: The ``celery.worker.request.Request`` of each member.
            args: Positional arguments for the body. Defaults to the list of requests. Each
                `SimpleRequest` in them, made by ``SimpleRequest.from_request``, stands for its
                request, and the body may mark it. Revoked and expired requests are removed from
                lists, tuples, sets and dictionaries.
            kwargs: Not used. The signature of 0.1 has it.

        Raises:
            ValueError: If a worker has not buffered these requests for this task, or if ``args``
                has a `SimpleRequest` of another request.
        """
        members = requests if isinstance(requests, Sequence) else list(requests)
        if not members:
            return None
        from .worker.sender import sender_for

        return sender_for(self.name, members).dispatch(members, tuple(args) or None)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Signature | Sequence[Signature] | None = None,
        link_error: Signature | Sequence[Signature] | None = None,
        task_id: str | None = None,
        retries: int | None = None,
        throw: bool | None = None,
        logfile: str | None = None,
        loglevel: int | None = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult:
        """Run one call in this process, as a batch of one.

        Arguments:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
            link: Callbacks of the call.
            link_error: Error callbacks of the call.
            task_id: Id of the call.
            retries: How often the call has been retried.
            throw: Whether to raise an exception of the body. Defaults to ``task_eager_propagates``.
            logfile: The ``logfile`` of ``task.request``.
            loglevel: The ``loglevel`` of ``task.request``.
            headers: Custom headers of the call.
            **options: Other calling options.

        Returns:
            The mark of the body as a result, or else the return value of the body.
        """
        from .eager import LogOptions, apply_eagerly

        task = self._get_app().tasks[self.name]
        calls = {"callbacks": maybe_list(link), "errbacks": maybe_list(link_error)}
        context = {**calls, "retries": retries or 0, "headers": headers, **options}
        log = LogOptions(loglevel or 0, logfile)
        return apply_eagerly(task, task_id or uuid(), args or (), kwargs or {}, context, throw, log)


def _keep_bodies(sender: Celery, **_: Any) -> None:
    """Keep the body of each batch task, when the app is finalized and before tools wrap it."""
    for task in sender.tasks.values():
        if isinstance(task, Batches):
            keep_body(task)
