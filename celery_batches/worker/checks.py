"""Refuses malformed messages before they reach the buffer. Runs in the worker's main process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from math import isfinite
from numbers import Real
from typing import Any
from uuid import UUID

from celery.exceptions import InvalidTaskError
from kombu import Message
from kombu.exceptions import EncodeError

__all__ = ("MALFORMED_MESSAGE_ERRORS", "check_message")

#: What Celery's own code raises for a malformed message.
MALFORMED_MESSAGE_ERRORS = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError),
    EncodeError,
)

#: A body with at most so many opening brackets cannot nest too deeply.
FEW_BRACKETS = 200

NESTING = frozenset({list, tuple, dict})

#: The ``timelimit`` header of a call without time limits.
NO_LIMITS: tuple[Any, ...] = ([None, None], (None, None))

#: Levels of nesting to keep free for the containers of a request on its way to the pool.
MARGIN = 50


def check_message(message: Message, body: Any) -> None:
    """Refuse a malformed message, as early as that can be known.

    Celery detects some of these errors in the pool, where they would fail the whole batch.

    Arguments:
        message: The ``kombu.Message``.
        body: Its decoded body in task protocol 1, ``None`` in protocol 2.

    Raises:
        celery.exceptions.InvalidTaskError: If it lacks a list of arguments or a mapping of keyword
            arguments, or if a header that the worker uses has the wrong type.
        kombu.exceptions.DecodeError: If it cannot be decoded.
        kombu.exceptions.ContentDisallowed: If its content type is not accepted.
    """
    payload, headers = message.payload, message.headers
    if body is not None or not _is_usual(payload):
        headers = _check_payload(payload, headers, body)
    _check_headers(headers)
    if _may_nest_deeply(message) or not _are_flat(message.headers):
        _check_depth([payload, message.headers])


def _is_usual(payload: object) -> bool:
    """Whether the payload is a list of args, kwargs and embed, as in nearly every message."""
    if type(payload) is not list or len(payload) != 3:
        return False
    args, kwargs, embed = payload
    return type(args) is list and type(kwargs) is dict and type(embed) is dict


def _check_payload(payload: Any, headers: Any, body: Any) -> Any:
    """Refuse a malformed payload, and return the headers of its version of the task protocol."""
    if isinstance(payload, Mapping) and (body is not None or "args" in payload):
        # Protocol 1, or the hybrid of 1 and 2.
        args, kwargs, embed = payload.get("args", ()), payload.get("kwargs", {}), None
        headers = {**payload, **headers} if "args" in payload else payload
    elif body is None and isinstance(payload, list | tuple) and len(payload) == 3:
        args, kwargs, embed = payload
    else:
        raise InvalidTaskError(
            f"the body must be a list of args, kwargs and embed, not {_kind(payload)}"
        )
    if not isinstance(args, list | tuple):
        raise InvalidTaskError(f"Task arguments must be a list, not {_kind(args)}")
    if not isinstance(kwargs, Mapping):
        raise InvalidTaskError(f"Task keyword arguments must be a mapping, not {_kind(kwargs)}")
    if embed is not None and not isinstance(embed, Mapping):
        raise InvalidTaskError(f"The embed of a task must be a mapping, not {_kind(embed)}")
    return headers


def _are_time_limits(value: object) -> bool:
    if value in NO_LIMITS:
        return True
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_time_limit, value))


def _is_time_limit(value: object) -> bool:
    return value is None or (isinstance(value, Real) and isfinite(value) and float(value) >= 0)


def _is_text(value: object) -> bool:
    """Whether it can be a key in a result backend, and can be logged."""
    return isinstance(value, str) and (value.isascii() or bool(value.encode()))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _are_names(value: object) -> bool:
    return isinstance(value, Collection) and all(isinstance(name, str) for name in value)


def _are_stamps(value: object) -> bool:
    return isinstance(value, Mapping)


#: What a header must be, if there is one, so that other requests do not suffer: the worker keeps
#: count of names, compares stamps, and gives the tightest limit of all requests to the batch.
HEADERS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("shadow", _is_text, "a string"),
    ("timelimit", _are_time_limits, "a list of the hard and the soft limit, in seconds"),
    ("retries", _is_count, "a number"),
    ("stamped_headers", _are_names, "a list of strings"),
    ("stamps", _are_stamps, "a mapping"),
)


def _check_headers(headers: Mapping[str, Any]) -> None:
    task_id = headers.get("id")
    # In Celery, ids of other types work unless a result backend makes a key of them.
    if not _is_text(task_id) and type(task_id) not in (int, UUID):
        raise InvalidTaskError(f"the id of a task must be a string, not {_kind(task_id)}")
    for name, is_valid, expected in HEADERS:
        value = headers.get(name)
        if value and not is_valid(value):
            raise InvalidTaskError(f"the header {name!r} of a task must be {expected}")


def _may_nest_deeply(message: Message) -> bool:
    """Whether the message may nest deeply, by a check that is cheap."""
    body = message.body
    if len(body) <= FEW_BRACKETS:
        return False
    if message.content_type == "application/json" and isinstance(body, bytes):
        return body.count(b"[") + body.count(b"{") > FEW_BRACKETS
    return True


def _are_flat(headers: Mapping[str, Any]) -> bool:
    """Whether no header has more than one level of nesting, which is usual."""
    for value in headers.values():
        if value and type(value) in NESTING:
            for item in value.values() if type(value) is dict else value:
                if type(item) in NESTING:
                    return False
    return True


def _check_depth(value: object) -> None:
    """Refuse a value that cannot be pickled, since its whole batch could not be sent."""
    for _ in range(MARGIN):
        value = [value]
    try:
        pickle.dumps(value)
    except Exception as exc:
        raise InvalidTaskError(f"it cannot be sent to the pool: {exc!r}") from exc


def _kind(value: object) -> str:
    return type(value).__name__
