"""Shortcut ``bulk_results`` for databases: one transaction for all states of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .state import State, copy_of

__all__ = ("store_in_database",)


class _Session:
    """A database session for many states: it commits when the last of them has been stored."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def join(self) -> _Session:
        if self.failed:
            raise RuntimeError("the transaction has been rolled back")
        return self

    def commit(self) -> None:
        self.session.flush()

    def rollback(self) -> None:
        self.failed = True

    def close(self) -> None:
        pass


def store_in_database(backend: Any, states: Sequence[State]) -> list[bool]:
    """Store states in one transaction. If one of them cannot be stored, none is."""
    from celery.backends.database import session_cleanup

    session = backend.ResultSession()
    with session_cleanup(session):
        copy = copy_of(backend, ResultSession=_Session(session).join)
        for each in states:
            each.store(copy)
        session.commit()
    return [True] * len(states)
