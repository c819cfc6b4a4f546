"""What is stored of a request in the result backend. In the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..request import SimpleRequest

if TYPE_CHECKING:
    # Other rooms take the type from here, since only this room may import `celery.backends`.
    from celery.backends.base import Backend as Backend

__all__ = ("State", "copy_of")


@dataclass(frozen=True, slots=True)
class State:
    """What the result backend is to know of a request."""

    request: SimpleRequest
    value: Any
    state: str
    traceback: str | None = None

    def store(self, backend: Backend) -> None:
        """Store it in the backend."""
        backend.store_result(
            self.request.id, self.value, self.state, self.traceback, request=self.request
        )


def copy_of(backend: Backend, **attributes: Any) -> Backend:
    """Return a copy of a result backend with a stand-in for its connection."""
    copy = object.__new__(type(backend))
    # What fails is done again by itself, not by this.
    copy.__dict__.update(backend.__dict__, **attributes, always_retry=False)
    return copy
