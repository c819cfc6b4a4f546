"""What became of each request of a batch. Pure: no Celery, no I/O. Used in the pool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ("UNMARKED", "Outcome", "decide")

#: The ways in which a request can end.
Kind = Literal["done", "failed", "rejected", "ignored", "unmarked"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended.

    Attributes:
        kind: Which way.
        value: The result of a done request; the exception of a failed, rejected or ignored one.
    """

    kind: Kind
    value: Any = None


#: The body returned and said nothing of this request.
UNMARKED = Outcome("unmarked")


def decide(own: Iterable[Outcome | None], *, default: Outcome) -> list[Outcome]:
    """Give every request exactly one outcome: its own if it has one, else that of the body."""
    return [outcome or default for outcome in own]
