"""The outcome slot of a request: what two rooms share of it. Pure. Used in the pool.

A request gets a slot when a batch takes it in (`bind`). The body, its helper threads and what
intercepts the result backend `record` an outcome there, and the first one wins. When the body has
ended the slot is closed, and whatever comes after that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar

from .outcomes import Outcome

__all__ = ("OutcomeSlot", "Progress", "RunningBatch")

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Progress(IntEnum):
    """How far the outcome of a request has been applied."""

    #: It is known here only.
    RECORDED = 0
    #: The result backend has it. Continuations are not sent yet.
    STORED = 1
    #: The result backend has it, and all that follows from it was sent.
    TOLD = 2


class RunningBatch(Protocol[R]):
    """The batch that runs, as its requests and the methods of its task see it."""

    @property
    def task(self) -> Any:
        """The batch task."""

    @property
    def requests(self) -> Sequence[R]:
        """All requests of the batch, in order."""

    @property
    def by_id(self) -> Mapping[str | None, R]:
        """The same, by id."""

    @property
    def eager(self) -> bool:
        """Whether it runs in the process of its caller."""

    def unsettled(self) -> list[R]:
        """Return the requests that have no outcome yet."""


class OutcomeSlot(Generic[R]):
    """Where the outcome of one request is recorded while its batch runs.

    There is one for each request of each batch. So it takes no more than one attribute until
    something happens to it, and recording is one step of the attributes' dictionary.
    """

    #: The batch that runs. None before and after.
    batch: RunningBatch[R] | None
    #: Whether the batch has ended.
    closed: bool = False
    #: How far the outcome has been applied.
    progress: Progress = Progress.RECORDED
    #: Results of the tasks that were sent because the request is done.
    children: Sequence[Any] = ()
    #: The outcome, if one was recorded.
    outcome: Outcome | None = None

    def __init__(self, batch: RunningBatch[R] | None = None) -> None:
        self.batch = batch

    def bind(self, batch: RunningBatch[R]) -> None:
        """Bind the request to a running batch, and clear its outcome."""
        self.__dict__ = {"batch": batch}

    def record(self, outcome: Outcome) -> bool:
        """Record an outcome; return whether it counts. The first one wins."""
        # One step, since helper threads of the body may record outcomes.
        return self.__dict__.setdefault("outcome", outcome) is outcome

    def replace(self, outcome: Outcome | None) -> None:
        """Replace the outcome after the write to the backend failed; None clears it."""
        if outcome is None:
            self.__dict__.pop("outcome", None)
        else:
            self.outcome = outcome

    def close(self) -> Outcome | None:
        """Refuse any outcome from now on, since the body has ended; return what there is."""
        self.batch = None
        self.closed = True
        # A thread that has not found it closed yet is too late all the same.
        final: Outcome | None = self.__dict__.setdefault("outcome", None)
        return final
