"""Runs the body of a batch with its context, signals and handlers. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from logging import DEBUG
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import current_app, signals, states
from celery._state import _task_stack
from celery.app.task import Context
from celery.app.trace import get_log_policy, task_has_custom, traceback_clear
from celery.exceptions import Ignore, Reject
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname
from celery.utils.saferepr import saferepr
from celery.utils.serialization import get_pickleable_etype, get_pickleable_exception
from kombu.utils.uuid import uuid

from .outcomes import UNMARKED, Outcome, decide
from .request import SimpleRequest
from .results import store_failure, watch

__all__ = ("BatchTrace", "Report", "apply_batches_task", "trace_batch")

logger = get_logger(__name__)

LOG_BATCH = "Batch %(name)s[%(id)s] of %(size)d requests, flushed by %(trigger)s, "
LOG_SUCCESS = LOG_BATCH + "succeeded in %(runtime)ss: %(return_value)s"
LOG_ENDED = LOG_BATCH + "%(description)s in %(runtime)ss: %(exc)s"

#: What the pool says of one request: whether it failed, and the representation of its result or
#: the ``ExceptionInfo`` of its failure (the first two values that ``Request.on_success`` takes).
Report = tuple[bool, Any]


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
    reports: list[Report] = field(default_factory=list)

    def run(self) -> None:
        """Run the body once, inside the context and the signals of one task: the batch."""
        task = self.task
        if self.body_args is None:
            self.body_args = (self.requests,)
        started = monotonic()
        _task_stack.push(task)
        task.request_stack.push(self._context())
        try:
            watch(task.backend)
            watch(task.app.backend)
            signals.task_prerun.send(
                sender=task, task_id=self.batch_id, task=task, args=self.body_args, kwargs={}
            )
            task.app.loader.on_task_init(self.batch_id, task)
            self._call_body()
            self.runtime = monotonic() - started
            self._conclude()
        finally:
            self._leave()

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
            members={request.id: request for request in self.requests},
        )

    def _call_body(self) -> None:
        task = self.task
        body: Callable[..., Any] = task if task_has_custom(task, "__call__") else task.run
        try:
            self._each_handler("before_start", ())
            self.retval = body(*(self.body_args or ()))
        except Exception as exc:
            if self.propagate:
                raise
            self._caught(exc)
        else:
            self.state = states.SUCCESS

    def _caught(self, exc: Exception) -> None:
        if isinstance(exc, Ignore | Reject):
            self.state = states.REJECTED if isinstance(exc, Reject) else states.IGNORED
            self.error, self.einfo = exc, ExceptionInfo(internal=True)
        else:
            self.state = states.FAILURE
            self._keep(exc)

    def _keep(self, exc: Exception) -> None:
        """Keep an exception in a form that can be sent to the main process and the backend."""
        self.error = get_pickleable_exception(exc)
        if self.error.__traceback__ is None:
            self.error.__traceback__ = exc.__traceback__
        self.einfo = ExceptionInfo(
            exc_info=(get_pickleable_etype(type(exc)), self.error, self.error.__traceback__)
        )

    def _conclude(self) -> None:
        """Give each request its outcome, then tell the signals and the log of the batch."""
        outcomes = decide(
            [request._outcome for request in self.requests], default=self._default_outcome()
        )
        for request, outcome in zip(self.requests, outcomes, strict=True):
            self.reports.append(self._settle_alone(request, outcome))
        if self.error is None:
            signals.task_success.send(sender=self.task, result=self.retval, runtime=self.runtime)
        elif self.state == states.FAILURE:
            signals.task_failure.send(
                sender=self.task,
                task_id=self.batch_id,
                exception=self.error,
                args=self.body_args,
                kwargs={},
                traceback=self.error.__traceback__,
                einfo=self.einfo,
            )
        self._log()
        if self.error is not None:
            # As Celery does: a kept traceback keeps every local variable of the body.
            traceback_clear(self.error)

    def _default_outcome(self) -> Outcome:
        if self.error is None:
            return UNMARKED
        if isinstance(self.error, Reject):
            return Outcome("rejected", self.error)
        if isinstance(self.error, Ignore):
            return Outcome("ignored", self.error)
        return Outcome("failed", self.error)

    def _settle_alone(self, request: SimpleRequest, outcome: Outcome) -> Report:
        """Settle one request; if that goes wrong, it is this one alone that fails."""
        try:
            return self._settle(request, outcome)
        except Exception as exc:
            if self.eager:
                raise
            logger.exception("Cannot settle %s: %r", request, exc)
            return True, _raised(get_pickleable_exception(exc))

    def _settle(self, request: SimpleRequest, outcome: Outcome) -> Report:
        """Do what follows from the outcome of one request, and report it."""
        if outcome.kind in ("done", "unmarked"):
            retval = outcome.value if outcome.kind == "done" else self.retval
            self._handler(request, "on_success", (retval,))
            self._handler(request, "after_return", (states.SUCCESS, retval), (None,))
            return False, saferepr(retval, self.task.resultrepr_maxsize)
        if outcome.kind != "failed":
            return True, self.einfo
        exc, einfo = outcome.value, self.einfo
        if exc is self.error:
            self._store_failure(request, outcome.value)
        else:
            # The body has written it to the backend itself.
            einfo = _raised(exc)
        self._handler(request, "on_failure", (exc,), (einfo,))
        self._handler(request, "after_return", (states.FAILURE, exc), (einfo,))
        return True, einfo

    def fail_the_rest(self, exc: Exception) -> None:
        """Fail every request that has no report yet: Celery raised, not the body."""
        self._keep(exc)
        for request in self.requests[len(self.reports) :]:
            self._store_failure(request, exc)
            self.reports.append((True, self.einfo))

    def _store_failure(self, request: SimpleRequest, exc: BaseException) -> None:
        try:
            store_failure(self.task, request, exc, self.einfo.traceback, eager=self.eager)
        except Exception as error:
            logger.exception("Cannot store the failure of %s: %r", request, error)

    def _each_handler(self, name: str, before: tuple[Any, ...]) -> None:
        if task_has_custom(self.task, name):
            for request in self.requests:
                getattr(self.task, name)(*before, request.id, request.args, request.kwargs)

    def _handler(
        self,
        request: SimpleRequest,
        name: str,
        before: tuple[Any, ...],
        after: tuple[Any, ...] = (),
    ) -> None:
        """Call a handler for one request; an error in it does not change what happened."""
        if not task_has_custom(self.task, name):
            return
        handler = getattr(self.task, name)
        try:
            handler(*before, request.id, request.args, request.kwargs, *after)
        except Exception as exc:
            if self.eager:
                raise
            logger.exception("%s of %s raised: %r", name, request, exc)

    def _log(self) -> None:
        context = {
            "name": self.task.name,
            "id": self.batch_id,
            "size": len(self.requests),
            "trigger": self.trigger,
            "runtime": self.runtime,
            "hostname": self.hostname,
        }
        if self.error is None:
            context["return_value"] = saferepr(self.retval, self.task.resultrepr_maxsize)
            logger.info(LOG_SUCCESS, context, extra={"data": context})
        else:
            policy = get_log_policy(self.task, self.einfo, self.error)
            context.update(
                description=policy.description, exc=repr(self.error), traceback=self.einfo.traceback
            )
            logger.log(
                policy.severity,
                LOG_ENDED,
                context,
                exc_info=self.error if policy.traceback else None,
                extra={"data": context},
            )
        if logger.isEnabledFor(DEBUG):
            for request in self.requests:
                logger.debug("Batch %s had %r", self.batch_id, request)

    def _leave(self) -> None:
        task = self.task
        try:
            signals.task_postrun.send(
                sender=task,
                task_id=self.batch_id,
                task=task,
                args=self.body_args,
                kwargs={},
                retval=self.retval if self.error is None else self.error,
                state=self.state,
            )
        finally:
            _task_stack.pop()
            task.request_stack.pop()
            if not self.eager:
                self._clean_up()

    def _clean_up(self) -> None:
        try:
            self.task.backend.process_cleanup()
            self.task.app.loader.on_process_cleanup()
        except Exception as exc:
            logger.exception("Process cleanup failed: %r", exc)


def _raised(exc: BaseException) -> ExceptionInfo:
    """Return the ``ExceptionInfo`` of an exception that may never have been raised."""
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()
