"""Arguments for the body that an override of `flush` has made. Runs in the worker's main process.

In 0.1 an override passed ``args=([SimpleRequest.from_request(r) for r in requests],)`` to
``apply_buffer``. The body marks these objects, so they are the members of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ..request import SimpleRequest
from .member_request import MemberRequest

__all__ = ("BodyArguments",)

#: The types of containers that are searched for requests.
CONTAINERS = (list, tuple, set, frozenset)


class BodyArguments:
    """Positional arguments for the body, in place of the list of members.

    Arguments:
        task_name: The name of the task, for the error.
        args: The arguments.
        requests: The requests of the batch.

    Raises:
        ValueError: If they hold a `SimpleRequest` of a request that is not in the batch. Its
            outcome would be lost.
    """

    def __init__(
        self, task_name: str, args: tuple[Any, ...], requests: Collection[MemberRequest]
    ) -> None:
        self._args = args
        self._own = {request.id: request for request in _requests_in(args)}
        foreign = self._own.keys() - {request.id for request in requests}
        if foreign:
            raise ValueError(
                f"{task_name}: the args of apply_buffer() hold {len(foreign)} requests that are "
                f"not among its requests: {sorted(map(str, foreign))}. Make each with "
                f"SimpleRequest.from_request(request), from a request that you pass on with it."
            )

    def simple_request(self, request: MemberRequest) -> SimpleRequest:
        """Return the `SimpleRequest` of a member."""
        own = self._own.get(request.id)
        return SimpleRequest.from_request(request) if own is None else own

    def fit(self, members: Sequence[SimpleRequest]) -> tuple[Any, ...] | None:
        """Return the arguments, without the requests that were revoked, expired or refused.

        Returns:
            None if they are only the list of members, which the pool makes itself.
        """
        ids = [member.id for member in members]
        args: tuple[Any, ...] = _rebuild(self._args, self._replace(frozenset(ids)))
        return None if args == (list(members),) else args

    def _replace(self, ids: Collection[str | None]) -> Callable[[SimpleRequest], Any]:
        return lambda request: self._own[request.id] if request.id in ids else _GONE


class _Gone:
    """Marks a request that is removed from the arguments."""


_GONE = _Gone()


def _requests_in(value: Any) -> Iterator[SimpleRequest]:
    """Return every request in a value, at any depth of lists, tuples, sets and dictionaries."""
    if isinstance(value, SimpleRequest):
        yield value
    elif isinstance(value, CONTAINERS):
        for item in value:
            yield from _requests_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _requests_in(item)


def _rebuild(value: Any, replace: Callable[[SimpleRequest], Any]) -> Any:
    """Return a value with each request in it replaced, or removed if it is `_GONE`."""
    if isinstance(value, SimpleRequest):
        return replace(value)
    if type(value) in CONTAINERS:
        items = [_rebuild(item, replace) for item in value]
        return type(value)(item for item in items if item is not _GONE)
    if type(value) is dict:
        pairs = {key: _rebuild(item, replace) for key, item in value.items()}
        return {key: item for key, item in pairs.items() if item is not _GONE}
    return value
