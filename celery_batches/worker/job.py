"""Sends one batch to the pool. Runs in the worker's main process.

To the worker, a `BatchJob` is a request. The pool runs it as one task. No other module of this room
imports from ``pool/``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from celery.exceptions import TaskRevokedError
from celery.utils.log import get_logger

from ..core.batch_info import FlushInfo
from ..errors import error_info
from ..pool.trace import trace_batch
from ..request import SimpleRequest
from .acks import collect_acks
from .body_args import BodyArguments
from .endings import BatchEndings
from .hard_limit import HardLimit
from .interfaces import Pool, Timer
from .lost_batch import Requests
from .member_request import SignalLog
from .members import Members, take_members
from .prefetch import Charge

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("BatchJob",)

logger = get_logger(__name__)


class BatchJob(BatchEndings):
    """A batch that the worker sends to the pool.

    Arguments:
        task: The batch task.
        requests: The ``celery.worker.request.Request`` of each member.
        trigger: Why the batch was flushed.
        flush: What else the body may know of that.
        hostname: Node name of the worker.
        still_ours: Called with the requests just before they are sent. It returns the requests
            whose connection is not lost, and releases the rest.
        charge: Its charge on the prefetch budget, if the counter has an allowance for batches.
        body_args: Positional arguments for the body. Defaults to the list of requests.
        timer: The worker's timer, for the hard time limit. Without it, the pool sees to that alone.
    """

    def __init__(
        self,
        task: Batches,
        requests: Requests,
        *,
        trigger: str,
        hostname: str,
        flush: FlushInfo | None = None,
        still_ours: Callable[[Requests], Requests] | None = None,
        charge: Charge | None = None,
        body_args: BodyArguments | None = None,
        timer: Timer | None = None,
    ) -> None:
        super().__init__(task, requests, charge)
        self.trigger = trigger
        self.flush = flush
        self.hostname = hostname
        self.body_args = body_args
        self._still_ours = still_ours
        self._timer = timer
        #: The list that the pool holds while the batch waits there, unless the pool has processes.
        self._simple_requests: list[SimpleRequest] = []

    def execute_using_pool(self, pool: Pool, **_: Any) -> Any:
        """Send the batch to the pool, without the requests that were revoked or have expired.

        Raises:
            celery.exceptions.TaskRevokedError: If no request is left, because all are revoked,
                their connection is lost, or the pool has refused the batch. The worker then frees
                the slot of the pool.
        """
        members = self._take_members()
        # Set before `still_ours` is called, since `withdraw` removes requests from this list.
        self._simple_requests = members.simple_requests
        self._leave_lost()
        if not self.requests:
            self._finish()
            raise TaskRevokedError(self.id)
        try:
            result = self._apply_async(pool, members)
        except Exception as exc:
            if self._accepted:
                raise
            self._fail(exc)
            raise TaskRevokedError(self.id) from exc
        if result is not None:
            self._result = ref(result)
            signalled: SignalLog = {}
            for request in self.requests:
                request.signalled = signalled
        return result

    @collect_acks()
    def _take_members(self) -> Members:
        members = take_members(self.requests, self.body_args, about=self)
        self.requests = members.requests
        return members

    def _leave_lost(self) -> None:
        """Keep only the requests whose connection is not lost."""
        requests, simple_requests = self.requests, self._simple_requests
        if self._still_ours is None or not requests:
            return
        ours = self._still_ours(requests)
        if len(ours) == len(requests):
            return
        kept = set(map(id, ours))
        with self._lock:
            if self.requests is requests:  # It was not withdrawn in between.
                self.requests = ours
                pairs = zip(requests, simple_requests, strict=True)
                simple_requests[:] = [simple for request, simple in pairs if id(request) in kept]

    def _apply_async(self, pool: Pool, members: Members) -> Any:
        myself: ref[BatchEndings] = ref(self)
        for request in self.requests:
            request.terminate_with(myself)
        task, simple_requests = self.task, members.simple_requests
        pool_options = getattr(pool, "options", None) or {}
        hard, soft = members.tightest_limits(
            (
                task.time_limit or pool_options.get("timeout"),
                task.soft_time_limit or pool_options.get("soft_timeout"),
            )
        )
        body_args = None if self.body_args is None else self.body_args.fit(simple_requests)
        record = self._record.open(len(simple_requests))
        if record is not None:
            self._limit = HardLimit.of(pool, hard, self._timer)
        sent = (self.id, simple_requests, self.trigger, self.hostname, body_args)
        return pool.apply_async(
            trace_batch,
            args=(task.name, *sent, self.flush, record),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=soft,
            timeout=hard if self._limit is None else self._limit.for_pool,
            correlation_id=self.id,
        )

    @collect_acks()
    def _fail(self, exc: Exception) -> None:
        """Fail the requests, since the pool has refused the batch."""
        logger.critical(
            "Batch %s[%s] of %d requests fails, since the pool has refused it: %r",
            self.task.name,
            self.id,
            len(self.requests),
            exc,
            exc_info=True,
        )
        reason = error_info(exc)
        self._notify_each(lambda request: request.fail(reason))
        self._finish()

    def withdraw(self) -> Requests:
        """Return the members and do not run the batch, unless the pool has started it.

        When a connection is lost, Celery empties its own queues, but not those of a pool of threads
        or greenlets.
        """
        with self._lock:
            if self._accepted:
                return ()
            withdrawn, self.requests = self.requests, ()
            self._simple_requests.clear()
        self._finish()
        return withdrawn
