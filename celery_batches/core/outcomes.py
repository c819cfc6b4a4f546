"""What became of each request of a batch. Pure: no Celery, no I/O. Used in the pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ("UNMARKED", "Outcome", "decide", "tally")

#: The ways in which a request can end. ``repeated``: it was done before, and is not run again.
Kind = Literal["done", "failed", "retried", "rejected", "ignored", "unmarked", "repeated"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended.

    Attributes:
        kind: Which way.
        value: The result of a done request; the exception of a failed, retried, rejected or ignored
            one, if there is one.
        written: Whether the result backend has been told already, and what follows from that done.
        stored: Whether the result backend has been told already, and that is all.
        options: Of a retried request, how to send it again, if that is still to be done; of a
            rejected one, whether to requeue it.
    """

    kind: Kind
    value: Any = None
    written: bool = False
    stored: bool = False
    options: Mapping[str, Any] | None = None


#: The body returned and said nothing of this request.
UNMARKED = Outcome("unmarked")


def decide(own: Iterable[Outcome | None], *, default: Outcome) -> list[Outcome]:
    """Give every request exactly one outcome: its own if it has one, else that of the body."""
    return [outcome or default for outcome in own]


def tally(kinds: Iterable[Kind], *, usual: frozenset[str]) -> str:
    """Count the requests that ended in another than the usual way: ``"2 failed, 1 retried"``."""
    counts = Counter(kind for kind in kinds if kind not in usual)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
