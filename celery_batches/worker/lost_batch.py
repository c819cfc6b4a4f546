"""A batch that has lost its process, or is about to. Runs in the worker's main process.

Some of its requests may have ended. They are reported before any other request is notified, as soon
as the process has ended: see `stored_ends`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from celery.exceptions import Terminated, TimeLimitExceeded
from celery.utils.log import get_logger
from kombu.utils.uuid import uuid

from ..core.end_record import End
from .acks import collect_acks
from .member_request import MemberRequest, notify
from .processes import TERM_SECONDS, end_process, wait_for_exit
from .records import BatchRecord
from .stored_ends import find_reports

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("LostBatch", "Requests")

logger = get_logger(__name__)

Requests = Sequence[MemberRequest]


class LostBatch:
    """The part of a batch that knows how its requests had ended before it lost its process.

    Arguments:
        task: The batch task.
        requests: The requests of the batch.
    """

    def __init__(self, task: Batches, requests: Requests) -> None:
        self.id: str = uuid()
        self.task = task
        self.requests = requests
        self._pid: int | None = None
        #: Whether Celery is about to end its process, and whether a time limit has done so.
        self._is_ending = self._is_over = False
        #: What its process notes of the requests that have ended.
        self._record = BatchRecord()

    def __str__(self) -> str:
        return f"Batch {self.task.name}[{self.id}]"

    @contextmanager
    def ending_process(self, pid: int) -> Iterator[None]:
        """Send a signal that may end the process, and report the requests that had ended."""
        self._is_ending = True
        yield
        wait_for_exit(pid, TERM_SECONDS)
        self._report_ended(self.requests, Terminated("its process was ended"))

    def _end_by_limit(self, exc: TimeLimitExceeded) -> None:
        """End the process of a batch that has reached its hard limit. Report what it had done."""
        if self._is_over:
            return
        self._is_over = True
        if self._pid is not None:
            # The pool does so after it has called this. The process would store more until then.
            end_process(self._pid)
        self._report_ended(self.requests, exc)

    @collect_acks()
    def _report_ended(self, requests: Requests, reason: BaseException) -> list[MemberRequest]:
        """Report the requests that have ended, and return the rest of them.

        Call it when the process has ended, or will do nothing more.
        """
        rest = [request for request in requests if not request.is_reported]
        try:
            reports = find_reports(self.task, rest, self._noted_ends())
        except Exception as exc:
            logger.exception("%s: cannot find the requests that have ended: %r", self, exc)
            return rest
        for request in rest:
            if request.id in reports:
                notify(lambda one: one.report(*reports[one.id]), request, about=self)
        ended = [request for request in rest if request.is_reported]
        if ended:
            logger.warning(
                "Batch %s[%s]: %d of %d requests had ended before: %r",
                *(self.task.name, self.id, len(ended), len(self.requests), reason),
            )
        return [request for request in rest if not request.is_reported]

    def _noted_ends(self) -> dict[str, End] | None:
        ends = self._record.ends()
        if ends is None:
            return None
        pairs = zip(self.requests, ends, strict=False)  # It may be withdrawn meanwhile.
        return {request.id: end for request, end in pairs if end is not None}

    def _unreported(self) -> list[MemberRequest]:
        return [request for request in self.requests if not request.is_reported]
