"""The outcome slot of a request, and the protocol of a running batch. Pure. Used in the pool.

A batch gives each of its requests a slot before it runs. The body, its helper threads and
`pool.marking` record an outcome there, and the first one wins. When the body has ended, the slot is
closed and refuses any later outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar

from .batch_info import BatchInfo
from .outcomes import Outcome

__all__ = ("HasOutcomeSlot", "OutcomeSlot", "Progress", "RunningBatch", "slot_of")

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Progress(IntEnum):
    """How far the outcome of a request has been applied."""

    #: Recorded in the slot only.
    RECORDED = 0
    #: Stored in the result backend. Continuations are not sent yet.
    STORED = 1
    #: Stored in the result backend, and continuations are sent.
    COMPLETE = 2


class RunningBatch(Protocol[R]):
    """The running batch, as its requests and the methods of its task see it."""

    @property
    def task(self) -> Any:
        """The batch task. Its type is Any, since the core does not know Celery."""

    @property
    def requests(self) -> Sequence[R]:
        """All requests of the batch, in order."""

    @property
    def active(self) -> Sequence[R]:
        """The requests that the body gets. After it has raised, this may be a part of them."""

    @property
    def by_id(self) -> Mapping[str | None, R]:
        """The requests of the batch, by id."""

    @property
    def info(self) -> BatchInfo:
        """What the body may know of it."""

    @property
    def eager(self) -> bool:
        """Whether it runs in the process of its caller."""

    def unsettled(self) -> list[R]:
        """Return the active requests that have no outcome yet."""

    def update_state(self, request: R, state: str | None, meta: Any, **options: Any) -> None:
        """Store a custom state for a request."""

    def note_end(self, request: R, outcome: Outcome) -> None:
        """Note that this outcome of a request has been applied, but for its handlers."""

    def acting_as(self, request: R) -> AbstractContextManager[Any]:
        """Make a request the current request of the task."""


class OutcomeSlot(Generic[R]):
    """Where the outcome of one request is recorded while its batch runs.

    Each request of each batch has one, so it has to be small. It has one instance attribute until
    an outcome is recorded. Recording is one atomic operation on the dictionary of attributes.
    """

    #: The running batch. None before and after its run.
    batch: RunningBatch[R] | None
    #: Whether the batch has ended.
    closed: bool = False
    #: How far the outcome has been applied.
    progress: Progress = Progress.RECORDED
    #: Results of the continuations that were sent.
    children: Sequence[Any] = ()
    #: The recorded outcome, if there is one.
    outcome: Outcome | None = None

    def __init__(self, batch: RunningBatch[R] | None = None) -> None:
        self.batch = batch

    def bind(self, batch: RunningBatch[R]) -> None:
        """Bind the request to a running batch, and clear its outcome."""
        self.__dict__ = {"batch": batch}

    def record(self, outcome: Outcome) -> bool:
        """Record an outcome, and return whether it counts. The first one wins."""
        # Atomic, since helper threads of the body may record outcomes.
        return self.__dict__.setdefault("outcome", outcome) is outcome

    def replace(self, outcome: Outcome | None) -> None:
        """Replace the outcome after the write to the backend failed. None clears it."""
        if outcome is None:
            self.__dict__.pop("outcome", None)
        else:
            self.outcome = outcome

    def close(self) -> Outcome | None:
        """Refuse any later outcome, since the body has ended. Return the recorded one, or None."""
        self.batch = None
        self.closed = True
        # This also refuses the outcome of a thread that has checked `closed` before.
        final: Outcome | None = self.__dict__.setdefault("outcome", None)
        return final


class HasOutcomeSlot(Protocol[R]):
    """A request that a batch can bind."""

    outcome_slot: OutcomeSlot[R] | None


def slot_of(request: HasOutcomeSlot[R]) -> OutcomeSlot[R]:
    """Return the outcome slot of a request, or a new one that no batch reads."""
    slot = request.outcome_slot
    if slot is None:
        slot = vars(request).setdefault("outcome_slot", OutcomeSlot())
    return slot
