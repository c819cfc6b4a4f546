"""Notes which requests have ended, for the case that this process is lost. Runs in the pool.

A request is noted when everybody has heard of its outcome but the worker's main process: its links
are sent, and its result is stored if it is to be. Its handlers may not have been called yet. If the
process is lost before the note, the request fails or runs again, as an ordinary task that is lost
there. If it is lost after the note, the request hears of nothing else. So nothing that it has to
hear is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from celery.exceptions import Reject

from ..core.end_record import End, EndRecord
from ..core.outcomes import Outcome
from ..core.slot import Progress, slot_of
from ..request import SimpleRequest
from .continuations import has_continuations, is_awaited
from .store import stores_errors

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("NO_NOTES", "EndNotes")

#: All outcomes but a rejection, of which there are two kinds.
ENDS: dict[str, int] = {
    "done": End.DONE,
    "failed": End.FAILED,
    "retried": End.RETRIED,
    "ignored": End.IGNORED,
    # The main process does the same for these as for one that is done.
    "unmarked": End.DONE,
    "repeated": End.DONE,
}


ONE_DONE = bytes([End.DONE])


class EndNotes:
    """The notes of one batch.

    Arguments:
        record: Where the notes are written, or None if there is no such place, as for a batch that
            runs eagerly.
        requests: The requests of the batch, in the order of the record.
    """

    __slots__ = ("_indexes", "_record", "_requests")

    def __init__(self, record: EndRecord | None, requests: Sequence[SimpleRequest]) -> None:
        self._record = record
        self._requests = requests
        #: The index of each request, by its identity.
        self._indexes: dict[int, int] | None = None
        if record is not None:
            record.begin()

    def end_body(self) -> None:
        """Note that the body has ended."""
        if self._record is not None:
            self._record.end_body()

    def note(self, request: SimpleRequest, outcome: Outcome) -> None:
        """Note that a request has ended with this outcome."""
        if self._record is None:
            return
        if self._indexes is None:
            self._indexes = {id(each): index for index, each in enumerate(self._requests)}
        index = self._indexes.get(id(request))
        if index is not None:  # The body may have marked a copy.
            self._record.note(index, _end(outcome))

    def note_unmarked(self, count: int) -> None:
        """Note that so many of the last requests have ended without an outcome of their own."""
        self._note_last(ONE_DONE * count)

    def note_applied(
        self,
        task: Batches,
        requests: Sequence[SimpleRequest],
        outcomes: Iterable[Outcome],
    ) -> Sequence[int]:
        """Note those of the last requests of which nothing has to be stored or sent any more.

        Returns:
            For each of them, whether it is noted.
        """
        if self._record is None:
            return bytes(len(requests))
        ends = bytes(
            [
                _end(outcome) if _is_applied(task, request, outcome) else 0
                for request, outcome in zip(requests, outcomes, strict=True)
            ]
        )
        self._note_last(ends)
        return ends

    def _note_last(self, ends: bytes) -> None:
        if self._record is not None:
            self._record.note_from(len(self._requests) - len(ends), ends)


NO_NOTES = EndNotes(None, ())


def _end(outcome: Outcome) -> int:
    end = ENDS.get(outcome.kind)
    if end is not None:
        return end
    reject = getattr(outcome, "exc", None)
    requeue = reject.requeue if isinstance(reject, Reject) else getattr(outcome, "requeue", False)
    return End.REQUEUED if requeue else End.REJECTED


def _is_applied(task: Batches, request: SimpleRequest, outcome: Outcome) -> bool:
    """Whether the pool has nothing to store or send for this outcome, or has done so."""
    kind = outcome.kind
    if kind == "done":
        if request.ignore_result and not is_awaited(request):
            return True
    elif kind == "failed":
        if not (stores_errors(task, request, eager=False) or has_continuations(request)):
            return True
    elif kind != "retried":
        return True
    return slot_of(request).progress is Progress.COMPLETE
