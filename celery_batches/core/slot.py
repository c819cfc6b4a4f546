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

    Attributes:
        batch: The batch that runs. None before and after.
        closed: Whether the batch has ended.
        progress: How far the outcome has been applied.
        children: Results of the tasks that were sent because the request is done.
    """

    __slots__ = ("_recorded", "batch", "children", "closed", "progress")

    def __init__(self, batch: RunningBatch[R] | None = None) -> None:
        self.bind(batch)

    def bind(self, batch: RunningBatch[R] | None) -> None:
        """Bind the request to a running batch, and clear its outcome."""
        self.batch = batch
        self.closed = False
        self.progress = Progress.RECORDED
        self.children: Sequence[Any] = ()
        #: The first one is the outcome: None if the slot was closed before there was one.
        self._recorded: list[Outcome | None] = []

    @property
    def outcome(self) -> Outcome | None:
        """The outcome, if one was recorded."""
        return self._recorded[0] if self._recorded else None

    def record(self, outcome: Outcome) -> bool:
        """Record an outcome; return whether it counts. The first one wins."""
        if self._recorded:
            return False
        # `append` is one step: of two threads that come here at once, one is first.
        self._recorded.append(outcome)
        return self._recorded[0] is outcome

    def replace(self, outcome: Outcome | None) -> None:
        """Replace the outcome after the write to the backend failed; None clears it."""
        self._recorded[:1] = [] if outcome is None else [outcome]

    def close(self) -> None:
        """Refuse any outcome from now on: the body has ended."""
        self.batch = None
        self.closed = True
        # A thread that has not found it closed yet is too late all the same.
        self._recorded.append(None)
