"""The functions that run one batch: in a pool, or in this process. Runs in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery import current_app
from celery.utils.nodenames import gethostname
from kombu.utils.uuid import uuid

from ..core.batch_info import FlushInfo
from ..request import SimpleRequest
from ..shared_memory import record_at
from .applied import Report
from .end_notes import EndNotes
from .run import BatchRun

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("apply_batches_task", "trace_batch")


def trace_batch(
    name: str,
    batch_id: str,
    requests: Sequence[SimpleRequest],
    trigger: str,
    hostname: str | None = None,
    body_args: tuple[Any, ...] | None = None,
    flush: FlushInfo | None = None,
    record: int | None = None,
) -> tuple[bool, list[Report], float]:
    """Run one batch of the current app. The worker sends this function to its pool.

    ``record`` is the start of its record in the shared memory, if it has one.

    Returns:
        Whether something other than the body failed, one report for each request in order, and the
        run time of the body in seconds.
    """
    batch = BatchRun(
        task=current_app.tasks[name],
        requests=requests,
        id=batch_id,
        trigger=trigger,
        hostname=hostname or gethostname(),
        body_args=body_args,
        flush=flush or FlushInfo(),
        notes=EndNotes(record_at(record, len(requests)), requests),
    )
    with batch.soft_limit:
        try:
            batch.run()
        except Exception as exc:
            # Most pools lose an exception. The main process would then wait for these requests.
            batch.fail_the_rest(exc)
    return batch.has_failed_outside, batch.reports, batch.runtime


def apply_batches_task(
    task: Batches, args: tuple[Sequence[SimpleRequest]], loglevel: int | None, logfile: str | None
) -> Any:
    """Run a batch in this process.

    Arguments:
        task: The batch task.
        args: One positional argument for the body: the requests.
        loglevel: Level of the worker's log, for ``task.request.loglevel``.
        logfile: Name of the worker's log file, for ``task.request.logfile``.

    Returns:
        The value that the body returned, or ``None`` if it raised. An exception of the body is
        logged, and the requests fail.
    """
    batch = BatchRun(
        task=task,
        requests=args[0],
        id=uuid(),
        trigger="manual",
        hostname=gethostname(),
        body_args=args,
        loglevel=loglevel,
        logfile=logfile,
    )
    batch.run()
    return batch.end.retval
