"""The one table of how a request can end: by exception, by outcome, by state. Runs in the pool."""

from __future__ import annotations

from celery import states
from celery.exceptions import Ignore, Reject, Retry

from ..core.outcomes import (
    Done,
    Failed,
    Ignored,
    Outcome,
    Rejected,
    Repeated,
    Retried,
    Unmarked,
)

__all__ = ("STATES", "outcome_of")

#: What Celery calls the state of a task that has ended in this way.
STATES: dict[type[Outcome], str] = {
    Done: states.SUCCESS,
    Unmarked: states.SUCCESS,
    Repeated: states.SUCCESS,
    Failed: states.FAILURE,
    Retried: states.RETRY,
    Rejected: states.REJECTED,
    Ignored: states.IGNORED,
}


def outcome_of(exc: BaseException) -> Outcome:
    """Return how a request ends that this exception was raised for."""
    match exc:
        case Retry():
            # Raised by hand: as in Celery, that alone sends nothing.
            return Retried(exc.exc)
        case Reject():
            return Rejected(exc)
        case Ignore():
            return Ignored(exc)
        case _:
            return Failed(exc)
