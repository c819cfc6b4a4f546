"""Shortcut ``bulk_results`` for databases: one transaction for all states. Runs in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .state import State, copy_backend

if TYPE_CHECKING:
    from celery.backends.database import DatabaseBackend
    from sqlalchemy.orm import Session

__all__ = ("store_in_database",)


class _SharedSession:
    """A database session for many states, which is committed after the last of them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def reuse(self) -> _SharedSession:
        if self.failed:
            raise RuntimeError("the transaction has been rolled back")
        return self

    def commit(self) -> None:
        self.session.flush()

    def rollback(self) -> None:
        self.failed = True

    def close(self) -> None:
        pass


def store_in_database(backend: DatabaseBackend, states: Sequence[State]) -> list[bool]:
    """Store states in one transaction. If one state cannot be stored, none is stored."""
    from celery.backends.database import session_cleanup

    session = backend.ResultSession()
    with session_cleanup(session):
        copy = copy_backend(backend, ResultSession=_SharedSession(session).reuse)
        for each in states:
            each.store(copy)
        session.commit()
    return [True] * len(states)
