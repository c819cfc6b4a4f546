"""The table from exceptions to outcomes, and from outcomes to Celery's states. Runs in the pool."""

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

#: The state that Celery gives a task with this outcome.
STATES: dict[type[Outcome], str] = {
    Done: states.SUCCESS,
    Unmarked: states.SUCCESS,
    Repeated: states.SUCCESS,
    Failed: states.FAILURE,
    Retried: states.RETRY,
    Rejected: states.REJECTED,
    Ignored: states.IGNORED,
}


def outcome_of(exc: BaseException, description: str | None = None) -> Outcome:
    """Return the outcome of a request for which this exception was raised.

    Arguments:
        exc: The exception.
        description: How the log puts it if the request has failed.
    """
    match exc:
        case Retry():
            # As in Celery, raising a `Retry` by hand publishes nothing.
            return Retried(exc.exc)
        case Reject():
            return Rejected(exc)
        case Ignore():
            return Ignored(exc)
        case _:
            return Failed(exc, description)
