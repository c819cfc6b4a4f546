"""Runs the body of a batch with its context, signals and handlers. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import current_app, signals, states
from celery.app.task import Context
from celery.app.trace import task_has_custom, traceback_clear
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname
from celery.utils.serialization import get_pickleable_etype
from kombu.utils.uuid import uuid

from ..backends.bulk import State, store_at_once
from ..core.outcomes import UNMARKED, Outcome, decide
from ..request import BATCH, SimpleRequest
from .context import call_handler, current, custom_handlers, describe, sendable
from .log import log_batch
from .marking import watch
from .results import deduplicates, done_before, started
from .settle import Report, Settled, Settler

__all__ = ("BatchTrace", "apply_batches_task", "trace_batch")

logger = get_logger(__name__)

#: What a signal handler sees as the state of a batch, by what its body raised.
STATES = ((Retry, states.RETRY), (Reject, states.REJECTED), (Ignore, states.IGNORED))


def trace_batch(
    name: str,
    batch_id: str,
    requests: Sequence[SimpleRequest],
    trigger: str,
    hostname: str | None = None,
    body_args: tuple[Any, ...] | None = None,
) -> tuple[bool, list[Report], float]:
    """Run one batch of the current app; this is what the worker hands to its pool.

    Returns:
        Whether something other than the body failed, one report for each request, in order, and
        the runtime in seconds.
    """
    trace = BatchTrace(
        task=current_app.tasks[name],
        requests=requests,
        batch_id=batch_id,
        trigger=trigger,
        hostname=hostname or gethostname(),
        body_args=body_args,
    )
    try:
        trace.run()
    except Exception as exc:
        # Most pools are not prepared for one: nobody would ever hear of these requests again.
        logger.critical("Batch %s[%s]: %r", name, batch_id, exc, exc_info=True)
        trace.fail_the_rest(exc)
        return True, trace.reports, trace.runtime
    return False, trace.reports, trace.runtime


def apply_batches_task(
    task: Any, args: tuple[Sequence[SimpleRequest]], loglevel: int | None, logfile: str | None
) -> Any:
    """Run a batch in this process.

    Arguments:
        task: The batch task.
        args: One positional argument for the body: the requests.
        loglevel: Level of the worker's log, for ``task.request.loglevel``.
        logfile: Name of the worker's log file, for ``task.request.logfile``.

    Returns:
        What the body returned, or ``None`` if it raised: that is logged, and the requests fail.
    """
    trace = BatchTrace(
        task=task,
        requests=args[0],
        batch_id=uuid(),
        trigger="manual",
        hostname=gethostname(),
        body_args=args,
        loglevel=loglevel,
        logfile=logfile,
    )
    trace.run()
    return trace.retval if trace.error is None else None


def outcome_of(exc: BaseException) -> Outcome:
    """Return how a request ends that this exception was raised for."""
    if isinstance(exc, Retry):
        # Raised by hand: as in Celery, that alone sends nothing.
        return Outcome("retried", exc.exc)
    if isinstance(exc, Reject):
        return Outcome("rejected", exc)
    return Outcome("ignored" if isinstance(exc, Ignore) else "failed", exc)


@dataclass(slots=True)
class BatchTrace:
    """One run of a batch's body, and what came of it."""

    task: Any
    requests: Sequence[SimpleRequest]
    batch_id: str
    trigger: str
    hostname: str
    body_args: tuple[Any, ...] | None = None
    loglevel: int | None = None
    logfile: str | None = None
    eager: bool = False
    #: Whether an exception of the body is raised from `run`.
    propagate: bool = False

    #: What the body returned.
    retval: Any = None
    #: What the body raised.
    error: BaseException | None = None
    einfo: Any = None
    state: str | None = None
    #: Seconds that the body took.
    runtime: float = 0.0
    #: How each request has ended, in order.
    settled: list[Settled] = field(default_factory=list)
    #: Why the retries of some requests have come to their end.
    exhausted: list[BaseException] = field(default_factory=list)
    #: The handlers that the task has of its own.
    handlers: frozenset[str] = frozenset()
    _by_id: dict[str | None, SimpleRequest] | None = None

    @property
    def by_id(self) -> dict[str | None, SimpleRequest]:
        """The requests, by id."""
        if self._by_id is None:
            self._by_id = {request.id: request for request in self.requests}
        return self._by_id

    @property
    def reports(self) -> list[Report]:
        """What the main process is told of each request, in order."""
        return [settled.report for settled in self.settled]

    def run(self) -> None:
        """Run the body once, inside the context and the signals of one task: the batch."""
        task = self.task
        self.handlers = custom_handlers(task)
        for request in self.requests:
            request._enter(self)
        if deduplicates(task):
            for request in self.requests:
                self._look_up(request)
        members = self.unsettled()
        if not members:
            self._settle()
            return
        if self.body_args is None:
            self.body_args = (members,)
        try:
            with current(task, self._context()):
                self._run(members)
        finally:
            if not self.eager:
                self._clean_up()

    def _run(self, members: list[SimpleRequest]) -> None:
        task = self.task
        try:
            watch(task.backend)
            watch(task.app.backend)
            signals.task_prerun.send(
                sender=task, task_id=self.batch_id, task=task, args=self.body_args, kwargs={}
            )
            task.app.loader.on_task_init(self.batch_id, task)
            started = monotonic()
            self._call_body(members)
            self.runtime = monotonic() - started
            self._conclude()
        finally:
            signals.task_postrun.send(
                sender=task,
                task_id=self.batch_id,
                task=task,
                args=self.body_args,
                kwargs={},
                retval=self.retval if self.error is None else self.error,
                state=self.state,
            )

    def unsettled(self) -> list[SimpleRequest]:
        """Return the requests that have no outcome yet."""
        return [request for request in self.requests if request._outcome is None]

    def _context(self) -> Context:
        return Context(
            id=self.batch_id,
            task=self.task.name,
            root_id=self.batch_id,
            args=self.body_args,
            kwargs={},
            retries=0,
            hostname=self.hostname,
            loglevel=self.loglevel,
            logfile=self.logfile,
            is_eager=self.eager,
            called_directly=False,
            ignore_result=True,
            delivery_info={"is_eager": self.eager},
            **{BATCH: self},
        )

    def _call_body(self, members: list[SimpleRequest]) -> None:
        task = self.task
        body: Callable[..., Any] = task if task_has_custom(task, "__call__") else task.run
        try:
            if task.track_started or "before_start" in self.handlers:
                self._begin_all(members)
                members[:] = self.unsettled()
            if members:
                self.retval = body(*(self.body_args or ()))
        except Exception as exc:
            if self.propagate and not isinstance(exc, Ignore | Reject | Retry):
                raise
            self._caught(exc)
        else:
            self.state = states.SUCCESS

    def _look_up(self, request: SimpleRequest) -> None:
        """See whether a request was done before. If that cannot be known, it is not run."""
        try:
            done_before(self.task, request)
        except Exception as exc:
            logger.error("Cannot look up %r: %r", request, exc, exc_info=True)
            request._settle(outcome_of(exc))

    def _begin_all(self, members: Sequence[SimpleRequest]) -> None:
        running = [started(self.task, each, self.hostname, eager=self.eager) for each in members]
        stored = store_at_once(self.task.backend, running)
        for request, state, done in zip(members, running, stored, strict=True):
            self._begin(request, None if done else state)

    def _begin(self, request: SimpleRequest, state: State | None) -> None:
        """Say that a request has started. If that goes wrong, it is not run."""
        try:
            if state is not None:
                state.store(self.task.backend)
            if "before_start" in self.handlers:
                call_handler(self.task, request, "before_start", raises=True)
        except Exception as exc:
            if self.propagate:
                raise
            logger.error("Cannot start %r: %r", request, exc, exc_info=True)
            request._settle(outcome_of(exc))

    def _caught(self, exc: Exception) -> None:
        self.state = next((s for kind, s in STATES if isinstance(exc, kind)), states.FAILURE)
        if isinstance(exc, Ignore | Reject):
            self.error, self.einfo = exc, ExceptionInfo(internal=True)
        else:
            self._keep(exc)

    def _keep(self, exc: Exception) -> None:
        """Keep an exception in a form that can be sent to the main process and the backend."""
        self.error = sendable(exc)
        self.einfo = ExceptionInfo(
            exc_info=(get_pickleable_etype(type(exc)), self.error, self.error.__traceback__)
        )

    def _conclude(self) -> None:
        """Give each request its outcome, then tell the signals and the log of the batch."""
        self._settle()
        if self.error is None:
            signals.task_success.send(sender=self.task, result=self.retval, runtime=self.runtime)
        failure = self.error if self.state == states.FAILURE else next(iter(self.exhausted), None)
        if failure is not None:
            self._send_failure(failure)
        log_batch(self)
        if self.error is not None:
            # As Celery does: a kept traceback keeps every local variable of the body.
            traceback_clear(self.error)

    def _settle(self) -> None:
        default = UNMARKED if self.error is None else outcome_of(self.error)
        for request in self.requests:
            request._leave()
        settler = self._settler()
        outcomes = decide([request._outcome for request in self.requests], default=default)
        for settled in settler.settle_all(self.requests, outcomes):
            self.settled.append(settled)
        self.exhausted = settler.exhausted

    def _settler(self) -> Settler:
        return Settler(
            task=self.task,
            retval=self.retval,
            error=self.error,
            einfo=self.einfo,
            eager=self.eager,
            propagate=self.propagate,
            handlers=self.handlers,
        )

    def _send_failure(self, error: BaseException) -> None:
        signals.task_failure.send(
            sender=self.task,
            task_id=self.batch_id,
            exception=error,
            args=self.body_args,
            kwargs={},
            traceback=error.__traceback__,
            einfo=self.einfo if error is self.error else describe(error),
        )

    def fail_the_rest(self, exc: Exception) -> None:
        """Fail every request that has no report and no outcome yet: Celery raised, not the body."""
        self._keep(exc)
        rest = self.requests[len(self.settled) :]
        for request in rest:
            request._leave()
        default = Outcome("failed", self.error)
        outcomes = [request._outcome or default for request in rest]
        for settled in self._settler().settle_all(rest, outcomes):
            self.settled.append(settled)

    def _clean_up(self) -> None:
        try:
            self.task.backend.process_cleanup()
            self.task.app.loader.on_process_cleanup()
        except Exception as exc:
            logger.exception("Process cleanup failed: %r", exc)
