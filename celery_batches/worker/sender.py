"""Sends batches to the pool, through ``task.flush``. Runs in the worker's main process.

A subclass may override ``flush``. The requests that it passes on go to the pool. The `Accounts`
account for the rest.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from celery.exceptions import Ignore, Reject
from celery.utils.log import get_logger

from ..core.batch_info import FlushInfo
from ..core.buffer import Batch
from ..core.shortcuts import enabled_shortcuts
from .accounting import Accounts
from .body_args import BodyArguments
from .clock import clock_of
from .endings import Requests
from .interfaces import Consumer
from .job import BatchJob
from .member_request import MemberRequest
from .prefetch import prefetch_of

if TYPE_CHECKING:
    from ..task import Batches
    from .strategy import BatchStrategy

__all__ = ("BatchSender", "sender_for")

logger = get_logger(__name__)

FLUSH_RAISED = (
    "Task %s: flush() has raised %r: %d of the %d requests of its batch had not been passed on, "
    "and fail with it. To fail requests, pass them on and mark them as failed in the body."
)


class BatchSender:
    """Sends the batches of one strategy to the pool.

    Call it without the lock of the strategy. The solo pool runs the body at once, and the gevent
    pool waits until it has room.

    Arguments:
        task: The batch task.
        consumer: The worker's consumer.
        strategy: The strategy.
        old: The sender of the strategy that the consumer had for the task until now.
    """

    def __init__(
        self,
        task: Batches,
        consumer: Consumer,
        strategy: BatchStrategy,
        old: BatchSender | None = None,
    ) -> None:
        self._task = task
        self._consumer = consumer
        self._strategy = strategy
        self._limits_body = "hard_limit" in enabled_shortcuts(task.app.conf)
        #: Shared with the next sender, since an override of `flush` may keep requests for longer.
        self.accounts: Accounts = old.accounts if old is not None else Accounts(task.name)
        #: The batches of this connection that run or wait in the pool, by id. Adding one and
        #: listing all are atomic, so any thread may do so.
        self._jobs: WeakValueDictionary[str, BatchJob] = WeakValueDictionary()

    def share_jobs(self, old: BatchSender) -> None:
        """Share the batches of another sender of the same connection."""
        self._jobs = old._jobs

    def flush(self, batch: Batch[MemberRequest]) -> None:
        """Call ``task.flush``, and then account for each request that it has not passed on."""
        try:
            self._task.flush(batch)
        except Exception as exc:
            # Raised further, Celery would reject the message that has filled the batch.
            self._on_error(batch, exc)
        else:
            lost = self._strategy.lost
            if lost is None:
                self.accounts.leave_out(batch)
            else:
                self.accounts.release(batch, lost.release)

    def _on_error(self, batch: Batch[MemberRequest], exc: Exception) -> None:
        lost, failed = self._strategy.lost, 0
        if lost is None:
            failed = self.accounts.fail(batch, exc)
        else:
            self.accounts.release(batch, lost.release)
        logger.log(
            logging.INFO if isinstance(exc, Ignore | Reject) else logging.CRITICAL,
            FLUSH_RAISED,
            *(self._task.name, exc, failed, len(batch)),
            exc_info=True,
        )

    def dispatch(self, requests: Requests, body_args: tuple[Any, ...] | None = None) -> None:
        """Send requests to the pool as one batch.

        Raises:
            ValueError: If the arguments for the body hold other requests than these.
        """
        args = BodyArguments(self._task.name, body_args, requests) if body_args else None
        self._send(requests, args)

    def _send(self, requests: Requests, args: BodyArguments | None) -> None:
        members = self.accounts.claim(requests)
        if not members:
            return
        job = self._job(members, requests, args)
        self._jobs[job.id] = job
        try:
            self._consumer.on_task_request(job)
        except BaseException:
            self.accounts.unclaim(job.withdraw())
            raise

    def _job(self, members: Requests, requests: Requests, args: BodyArguments | None) -> BatchJob:
        # The requests of a `Batch` have left the buffer together, so they need no check.
        is_mixed = type(requests) is not Batch and any(
            request.strategy is not self._strategy for request in members
        )
        prefetch = prefetch_of(self._consumer)
        return BatchJob(
            self._task,
            members,
            trigger=getattr(requests, "trigger", "manual"),
            hostname=self._consumer.hostname,
            flush=_flush_info(requests, members, now=clock_of(self._consumer).monotonic()),
            still_ours=self._still_ours if is_mixed else self._ours_unless_lost,
            charge=None if prefetch is None else prefetch.charge(len(members)),
            body_args=args,
            timer=self._consumer.timer if self._limits_body else None,
        )

    def release_waiting(self) -> None:
        """Release the batches that the pool has not started, since the connection is lost.

        The broker redelivers their messages. Requests that were left out first are acknowledged, so
        the broker does not have them. These are sent to the pool again.
        """
        for reference in self._jobs.valuerefs():
            job = reference()
            if job is not None:
                self._release_job(job)

    def _release_job(self, job: BatchJob) -> None:
        ours, withdrawn = [], job.withdraw()
        for request in job.requests:
            # It runs on. That its message comes again is not for a lost process.
            self._strategy.redeliveries.remember(request)
        for request in withdrawn:
            if request.is_left_out:
                ours.append(request)
            else:
                self._strategy.release(request)
        if ours:
            self.accounts.unclaim(ours)
            self._send(ours, job.body_args)

    def _ours_unless_lost(self, requests: Requests) -> Requests:
        """Do the same as `_still_ours`, for requests of this strategy only."""
        return requests if self._strategy.lost is None else self._still_ours(requests)

    def _still_ours(self, requests: Requests) -> Requests:
        """Return the requests that may run, and release those whose connection is lost.

        A request that was left out may run, since it is acknowledged and not redelivered.
        """
        ours = []
        for request in reversed(requests):
            lost = request.strategy and request.strategy.lost
            if lost is None or request.is_left_out:
                ours.append(request)
            else:
                lost.release(request)
        return ours[::-1]


def _flush_info(requests: Requests, members: Requests, *, now: float) -> FlushInfo:
    """Return what the body may know of the flush of these requests.

    Arguments:
        requests: What was passed to ``flush``: a batch of the buffer, or what an override has made.
        members: Those of them that run.
        now: The time, by the clock of their arrivals.
    """
    # The requests of a `Batch` are in the order of their arrival.
    oldest = members[:1] if type(requests) is Batch else members
    waited = now - min(request.arrival for request in oldest)
    key, weight = getattr(requests, "key", None), getattr(requests, "weight", None)
    return FlushInfo(waited, time.monotonic(), _sendable(key), weight)


def _sendable(key: Any) -> Any:
    """Return a key, or its representation if it cannot be pickled, as the batch could not be."""
    if isinstance(key, str | int | float | None):
        return key
    try:
        pickle.dumps(key)
    except Exception:
        return repr(key)
    return key


def sender_for(task_name: str, requests: Sequence[Any]) -> BatchSender:
    """Return the sender that can send these requests as a batch of this task.

    Raises:
        ValueError: If a worker has not buffered all these requests for the task.
    """
    found: list[BatchStrategy] = []
    # The requests of a `Batch` have left the buffer together, so one check is enough.
    for request in requests[:1] if type(requests) is Batch else requests:
        strategy = getattr(request, "strategy", None)
        if strategy is None:
            raise ValueError(
                f"{task_name}: only requests that a worker has buffered can be flushed; "
                f"use apply_async() to send a call, or apply() to run one here"
            )
        if strategy in found:
            continue
        if strategy.task.name != task_name:
            raise ValueError(
                f"{task_name}: only its own requests can be flushed, not those of "
                f"{strategy.task.name}; use {strategy.task.name}.flush() for these"
            )
        found.append(strategy)
    # Requests that an override has kept may be of an older connection.
    return next((strategy for strategy in found if strategy.lost is None), found[0]).sender
