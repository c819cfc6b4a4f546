"""Runs a batch through Celery's own tracer, as one ordinary task. Runs in the pool.

Tools for errors and performance hook into ``celery.app.trace.build_tracer`` and into the task that
it gets. To these tools, a batch must look like one ordinary task. So Celery's tracer runs it, with
two classes of this module. `BatchTask` stands in for the task, and its ``run`` runs the batch.
`BatchTraceInfo` replaces Celery's handling of errors. ``docs/adr/0006-one-tracer.rst`` has the
reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from billiard.einfo import ExceptionInfo
from celery.app import trace
from celery.app.task import Context
from celery.local import Proxy

from .running import is_running, traced_batch

if TYPE_CHECKING:
    from ..task import Batches
    from .run import BatchRun

__all__ = ("BatchTask", "Tracer", "build_batch_tracer", "run_in_tracer")

#: It takes the id, the arguments of the body, its keyword arguments, and the context. All of them
#: are positional, as tools that wrap a tracer expect.
Tracer: TypeAlias = "Callable[[str, tuple[Any, ...], dict[str, Any], dict[str, Any]], Any]"

#: The highest ``self.request.retries``. A message may claim any number, and bodies and
#: ``autoretry_for`` compute powers of it.
MOST_RETRIES = 10_000

#: A class has its own values of these attributes, which would hide those of the task.
FORWARDED = {name: vars(Proxy)[name] for name in ("__module__", "__doc__")}


class BatchTask(Proxy):  # type: ignore[misc]  # celery is not typed
    """Stands in for the task in Celery's tracer, and in the tools that hook into that tracer.

    It forwards reads and writes of attributes to the task. Signals name the task as their sender.
    It differs from the task in these points:

    * ``run`` runs the batch. The handlers do nothing, since they are called for each request.
    * Nothing is stored for a batch.
    * While the tracer is built, attributes that are written stay here, and attributes of the task's
      instance are hidden. So a tool does not find its mark from wrapping the task, and wraps this.

    Celery looks for custom handlers and for ``__call__`` in the class of the task. So this class
    defines them, whether the task has them or not.
    """

    ignore_result = True
    track_started = False
    #: Celery's line for a batch is not logged, so what the body has returned is not written out.
    resultrepr_maxsize = 1

    def __init__(self, task: Batches) -> None:
        super().__init__(lambda: task)
        object.__setattr__(self, "_is_built", False)

    def __getattr__(self, name: str) -> Any:
        task = self._get_current_object()
        if not self._is_built and not hasattr(task.__class__, name):
            raise AttributeError(name)
        return getattr(task, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_built:
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the batch, for tools that call the task that they have wrapped."""
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the batch."""
        return traced_batch().execute(args, kwargs)

    def before_start(self, *args: Any) -> None:
        """Do nothing: the handler is called for each request."""

    def on_success(self, *args: Any) -> None:
        """Do nothing: the handler is called for each request."""

    def after_return(self, *args: Any) -> None:
        """Do nothing: the handler is called for each request."""

    def end_build(self) -> None:
        """Forward all reads and writes from now on, since the tracer is built."""
        object.__setattr__(self, "_is_built", True)


class BatchTraceInfo(trace.TraceInfo):  # type: ignore[misc]  # celery is not typed
    """Handles the exception of a batch in Celery's tracer.

    `BatchRun.execute` has applied the outcome of each request before it raises the exception.
    """

    __slots__ = ()

    def handle_error_state(
        self, task: Batches, req: Context, eager: bool = False, call_errbacks: bool = True
    ) -> ExceptionInfo:
        """Send the signal and write the log line of a batch that failed or is retried."""
        return traced_batch().on_error(self.retval)

    def handle_reject(self, task: Batches, req: Context, **kwargs: Any) -> None:
        """Log a ``Reject``."""
        traced_batch().on_error(self.retval)

    def handle_ignore(self, task: Batches, req: Context, **kwargs: Any) -> None:
        """Log an ``Ignore``."""
        traced_batch().on_error(self.retval)


def build_batch_tracer(task: Batches, *, eager: bool) -> Tracer:
    """Build Celery's tracer for the batches of a task, with the tools that hook into it.

    Arguments:
        task: The batch task.
        eager: Whether its batches run in the process of their caller.
    """
    logging.getLogger(trace.__name__).addFilter(_is_not_of_a_batch)
    # Each task gets its own class, since tools may wrap methods of the class.
    stand_in = type("BatchTask", (BatchTask,), FORWARDED)(task)
    # Looked up at each use, since tools replace it in its module.
    tracer: Tracer = trace.build_tracer(
        task.name, stand_in, eager=eager, app=task.app, Info=BatchTraceInfo
    )
    stand_in.end_build()
    return tracer


def run_in_tracer(batch: BatchRun) -> None:
    """Run a batch through Celery's tracer, which calls its ``execute``."""
    _tracer_of(batch)(batch.id, batch.body_args or (), {}, _request_dict(batch))


def _tracer_of(batch: BatchRun) -> Tracer:
    task = batch.task
    if batch.eager:
        return build_batch_tracer(task, eager=True)
    tracer: Tracer | None = task.__dict__.get("__batch_tracer__")
    if tracer is None:
        tracer = task.__batch_tracer__ = build_batch_tracer(task, eager=False)
    return tracer


def _request_dict(batch: BatchRun) -> dict[str, Any]:
    """Return the context of a batch: ``self.request`` in its body."""
    # With older versions of Celery, a message may claim what is no number.
    counts = [(request.request_dict or {}).get("retries") for request in batch.active]
    retries = max(count if isinstance(count, int) else 0 for count in counts)
    return {
        "id": batch.id,
        "task": batch.task.name,
        "root_id": batch.id,
        "argsrepr": f"(<list of {len(batch.active)} requests>,)",
        "kwargsrepr": "{}",
        "retries": min(retries, MOST_RETRIES),
        "hostname": batch.hostname,
        "loglevel": batch.loglevel,
        "logfile": batch.logfile,
        "is_eager": batch.eager,
        "ignore_result": True,
        "delivery_info": {"is_eager": batch.eager},
    }


def _is_not_of_a_batch(record: logging.LogRecord) -> bool:
    """Suppress Celery's line for a batch that succeeds, since `pool.log` writes another."""
    data = getattr(record, "data", None)
    return not isinstance(data, dict) or not is_running(data.get("id"))
