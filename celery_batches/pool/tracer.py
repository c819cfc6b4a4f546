"""Runs a batch through Celery's own tracer, as one ordinary task. Runs in the pool.

Tools for errors and performance hook into ``celery.app.trace.build_tracer`` and into the task that
it is given. To them a batch is to look like one ordinary task. So Celery's tracer runs the batch,
with two things of ours: a stand-in for the task, whose ``run`` runs the batch, and a `TraceInfo`
that leaves requests alone. ``docs/adr/0006-one-tracer.rst`` has the reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from billiard.einfo import ExceptionInfo
from celery.app import trace
from celery.local import Proxy

from .running import is_running, traced_batch

__all__ = ("BatchTask", "Tracer", "build_batch_tracer")

#: It takes the id, the arguments of the body, no keyword arguments, and the context: all of them
#: positional, as what wraps a tracer expects.
Tracer: TypeAlias = "Callable[[str, tuple[Any, ...], dict[str, Any], dict[str, Any]], Any]"


#: Each class has these of its own, which would hide those of the task.
FORWARDED = {name: vars(Proxy)[name] for name in ("__module__", "__doc__")}


class BatchTask(Proxy):  # type: ignore[misc]  # celery is not typed
    """The task as Celery's tracer, and what hooks into that, see it while a batch runs.

    It is the task in all that can be read or written, and as the sender of signals, with these
    exceptions:

    * ``run`` runs the batch, and the handlers do nothing: they are for requests, not for a batch.
    * Nothing is stored for a batch.
    * What is written to it while the tracer is built stays here, and marks that were left on the
      task itself do not show: a tool that marks what it has wrapped has not wrapped this.

    Celery looks for custom handlers and for ``__call__`` in the class of the task, which is why
    both are here, whether the task has them or not.
    """

    ignore_result = True
    track_started = False

    def __init__(self, task: Any) -> None:
        super().__init__(lambda: task)
        object.__setattr__(self, "_is_being_traced", False)

    def __getattr__(self, name: str) -> Any:
        task = self._get_current_object()
        if not self._is_being_traced and not hasattr(task.__class__, name):
            raise AttributeError(name)
        return getattr(task, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_being_traced:
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the batch: some tools call the task that they have wrapped."""
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the batch."""
        return traced_batch().execute(args, kwargs)

    def before_start(self, *args: Any) -> None:
        """Leave it to each request."""

    def on_success(self, *args: Any) -> None:
        """Leave it to each request."""

    def after_return(self, *args: Any) -> None:
        """Leave it to each request."""

    def begin(self) -> None:
        """From now on, write to the task itself."""
        object.__setattr__(self, "_is_being_traced", True)


class BatchInfo(trace.TraceInfo):  # type: ignore[misc]  # celery is not typed
    """What Celery's tracer does when the body of a batch has raised.

    The outcome of each request has been applied by then, while the exception was on its way.
    """

    __slots__ = ()

    def handle_error_state(
        self, task: Any, req: Any, eager: bool = False, call_errbacks: bool = True
    ) -> ExceptionInfo:
        """Tell signals and the log of a failure or a retry of the batch."""
        return traced_batch().on_error(self.retval)

    def handle_reject(self, task: Any, req: Any, **kwargs: Any) -> None:
        """Tell the log of a ``Reject``."""
        traced_batch().on_error(self.retval)

    def handle_ignore(self, task: Any, req: Any, **kwargs: Any) -> None:
        """Tell the log of an ``Ignore``."""
        traced_batch().on_error(self.retval)


def build_batch_tracer(task: Any, *, eager: bool) -> Tracer:
    """Return what runs a batch of the task: Celery's tracer, with whatever hooks into it.

    Arguments:
        task: The batch task.
        eager: Whether it is for batches that run in the process of their caller.
    """
    logging.getLogger(trace.__name__).addFilter(_is_not_of_a_batch)
    # A class of its own for each: tools may wrap a method of the class.
    stand_in = type("BatchTask", (BatchTask,), FORWARDED)(task)
    # Looked up when it is used, since that is what tools replace.
    tracer: Tracer = trace.build_tracer(
        task.name, stand_in, eager=eager, app=task.app, Info=BatchInfo
    )
    stand_in.begin()
    return tracer


def _is_not_of_a_batch(record: logging.LogRecord) -> bool:
    """Leave out Celery's line for a batch that succeeds: `pool.log` writes one that says more."""
    data = getattr(record, "data", None)
    return not isinstance(data, dict) or not is_running(data.get("id"))
