"""The errors of `apply_async_many` and `delay_many`. Runs in the process that sends calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery.result import ResultSet
from kombu.exceptions import OperationalError

__all__ = ("SendError", "SendOperationalError")


class SendError(Exception):
    """Not all calls were sent. The exception that stopped the sending is its ``__cause__``.

    The calls in ``uncertain`` and ``unsent`` are dicts that `Batches.apply_async_many` takes, with
    their ids. If you send them again, they keep their ids::

        try:
            task.delay_many(clicks)
        except SendError as error:
            task.apply_async_many([*error.uncertain, *error.unsent])

    A call that was not yet taken from the iterable is in none of the three. Pass the same iterator
    again to go on with the rest. A generator that has raised has no rest.

    Attributes:
        sent (celery.result.ResultSet): The results of the calls that the broker has, in order.
        uncertain (list[dict]): Calls that the broker may have or not have: the connection was lost
            before it answered.
        unsent (list[dict]): Calls that were taken and that the broker does not have.
    """

    def __init__(
        self,
        message: str,
        sent: ResultSet,
        uncertain: Sequence[dict[str, Any]] = (),
        unsent: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(message, sent, uncertain, unsent)
        self.sent = sent
        self.uncertain = list(uncertain)
        self.unsent = list(unsent)

    def __str__(self) -> str:
        return str(self.args[0])


class SendOperationalError(SendError, OperationalError):  # type: ignore[misc]  # not typed
    """The broker could not be reached, or has refused messages.

    It is also a ``kombu.exceptions.OperationalError``, which ``task.OperationalError`` is.
    """
