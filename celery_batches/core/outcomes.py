"""The outcomes of a request. Pure. Used in the pool.

Each request ends in exactly one outcome, and the first recorded outcome wins. `core.slot.Progress`
says how far an outcome has been applied.
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

#: The name of an outcome in the log.
Kind = Literal["done", "failed", "retried", "rejected", "ignored", "unmarked", "repeated"]


@dataclass(frozen=True, slots=True)
class Done:
    """The request has succeeded with this result."""

    result: Any = None
    kind: ClassVar[Kind] = "done"


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed with this exception.

    Attributes:
        exc: The exception.
        description: How the log puts it. Defaults to Celery's words for a task that has raised.
    """

    exc: BaseException
    description: str | None = None
    kind: ClassVar[Kind] = "failed"


@dataclass(frozen=True, slots=True)
class Retried:
    """The request is retried.

    Attributes:
        exc: The reason, if one was given.
        options: The arguments of ``Task.retry``. None if nothing is published: in Celery, raising a
            ``Retry`` by hand publishes nothing.
    """

    exc: BaseException | None = None
    options: Mapping[str, Any] | None = None
    kind: ClassVar[Kind] = "retried"


@dataclass(frozen=True, slots=True)
class Rejected:
    """The message is rejected.

    Attributes:
        exc: The ``Reject`` that was raised, if one was. It has its own ``requeue``.
        requeue: Whether to requeue the message, if there is no ``Reject``.
    """

    exc: BaseException | None = None
    requeue: bool = False
    kind: ClassVar[Kind] = "rejected"


@dataclass(frozen=True, slots=True)
class Ignored:
    """The request ends without a state, because this ``Ignore`` was raised."""

    exc: BaseException
    kind: ClassVar[Kind] = "ignored"


@dataclass(frozen=True, slots=True)
class Unmarked:
    """The body has returned without recording an outcome for the request."""

    kind: ClassVar[Kind] = "unmarked"


@dataclass(frozen=True, slots=True)
class Repeated:
    """The message was redelivered, and its request has succeeded before. It does not run again."""

    kind: ClassVar[Kind] = "repeated"


Outcome: TypeAlias = Done | Failed | Retried | Rejected | Ignored | Unmarked | Repeated

UNMARKED = Unmarked()


def decide(recorded: Iterable[Outcome | None], *, default: Outcome) -> list[Outcome]:
    """Give each request exactly one outcome: the recorded one, or else the default."""
    return [outcome or default for outcome in recorded]


def tally(kinds: Iterable[Kind], *, usual: frozenset[str]) -> str:
    """Count the outcomes that are not usual, such as ``"2 failed, 1 retried"``."""
    counts = Counter(kind for kind in kinds if kind not in usual)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
