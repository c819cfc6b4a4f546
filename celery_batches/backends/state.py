"""The state of one request, as the result backend stores it. Used in the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.backends.base import DisabledBackend

from ..request import SimpleRequest

if TYPE_CHECKING:
    # Other rooms take the type from here, since only this room may import `celery.backends`.
    from celery.backends.base import Backend as Backend

__all__ = ("State", "copy_backend", "keeps_results")


@dataclass(frozen=True, slots=True)
class State:
    """The arguments of ``store_result`` for one request."""

    request: SimpleRequest
    value: Any
    state: str
    traceback: str | None = None

    def store(self, backend: Backend) -> None:
        """Store this state in the backend."""
        backend.store_result(
            self.request.id, self.value, self.state, self.traceback, request=self.request
        )


def copy_backend(backend: Backend, **attributes: Any) -> Backend:
    """Return a copy of a result backend in which these attributes replace its connection."""
    copy = object.__new__(type(backend))
    # By default a state that fails in the copy is stored separately, so the copy need not retry.
    copy.__dict__.update({**backend.__dict__, "always_retry": False, **attributes})
    return copy


def keeps_results(backend: Backend) -> bool:
    """Whether there is a result backend."""
    return not isinstance(backend, DisabledBackend)
