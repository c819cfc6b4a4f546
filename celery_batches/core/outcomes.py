"""What became of each request of a batch. Pure. Used in the pool.

Each request ends in exactly one outcome, and the first one that is recorded wins. How far an
outcome has been applied (stored, continuations sent) is not part of it: see `core.slot.Progress`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

__all__ = (
    "UNMARKED",
    "Done",
    "Failed",
    "Ignored",
    "Kind",
    "Outcome",
    "Rejected",
    "Repeated",
    "Retried",
    "Unmarked",
    "decide",
    "tally",
)

#: The name of an outcome, as the log says it.
Kind = Literal["done", "failed", "retried", "rejected", "ignored", "unmarked", "repeated"]


@dataclass(frozen=True, slots=True)
class Done:
    """The request has succeeded with this result."""

    result: Any = None
    kind: ClassVar[Kind] = "done"


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed with this exception."""

    exc: BaseException
    kind: ClassVar[Kind] = "failed"


@dataclass(frozen=True, slots=True)
class Retried:
    """The request is sent again.

    Attributes:
        exc: Why, if that was said.
        options: How, as the arguments of ``Task.retry``. None if it is not to be sent from here:
            in Celery, a ``Retry`` that is raised by hand sends nothing.
    """

    exc: BaseException | None = None
    options: Mapping[str, Any] | None = None
    kind: ClassVar[Kind] = "retried"


@dataclass(frozen=True, slots=True)
class Rejected:
    """The broker takes the message back.

    Attributes:
        exc: The ``Reject`` that was raised, if one was.
        requeue: Whether the broker is to deliver it again, if no ``Reject`` says so.
    """

    exc: BaseException | None = None
    requeue: bool = False
    kind: ClassVar[Kind] = "rejected"


@dataclass(frozen=True, slots=True)
class Ignored:
    """The request ends without a state, since this ``Ignore`` was raised."""

    exc: BaseException
    kind: ClassVar[Kind] = "ignored"


@dataclass(frozen=True, slots=True)
class Unmarked:
    """The body has returned without recording an outcome for the request."""

    kind: ClassVar[Kind] = "unmarked"


@dataclass(frozen=True, slots=True)
class Repeated:
    """The message was delivered again, and its request was done before: it is not run again."""

    kind: ClassVar[Kind] = "repeated"


Outcome: TypeAlias = Done | Failed | Retried | Rejected | Ignored | Unmarked | Repeated

UNMARKED = Unmarked()


def decide(own: Iterable[Outcome | None], *, default: Outcome) -> list[Outcome]:
    """Give every request exactly one outcome: its own if it has one, else that of the body."""
    return [outcome or default for outcome in own]


def tally(kinds: Iterable[Kind], *, usual: frozenset[str]) -> str:
    """Count the requests that ended in another than the usual way: ``"2 failed, 1 retried"``."""
    counts = Counter(kind for kind in kinds if kind not in usual)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
