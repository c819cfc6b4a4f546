"""The names and defaults of a task's context in Celery. Pure. Used in both processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ("CONTEXT_DEFAULTS", "CONTEXT_KEYS", "NOT_CUSTOM", "ContextAttributes")

#: The values of a context for keys that the message leaves out: the defaults of
#: ``celery.app.task.Context``.
CONTEXT_DEFAULTS: dict[str, Any] = {
    "callbacks": None,
    "called_directly": False,
    "chain": None,
    "errbacks": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "is_eager": False,
    "logfile": None,
    "loglevel": None,
    "origin": None,
    "parent_id": None,
    "properties": None,
    "replaced_task_nesting": 0,
    "retries": 0,
    "root_id": None,
    "shadow": None,
    "stamped_headers": None,
    "stamps": None,
    "taskset": None,
    "timelimit": None,
    "utc": None,
}

#: The keys of a context that Celery defines: the headers of task protocol 2, the keys that the
#: protocol embeds in the body, and the keys that the worker adds on receipt.
CONTEXT_KEYS = frozenset(
    (
        *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
        *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin"),
        *("ignore_result", "replaced_task_nesting", "stamped_headers", "stamps", "compression"),
        *("callbacks", "errbacks", "chain", "chord"),
        *("properties", "reply_to", "correlation_id", "hostname", "delivery_info"),
        *("args", "kwargs"),
    )
)

#: Every key that is not a custom header.
NOT_CUSTOM = CONTEXT_KEYS | CONTEXT_DEFAULTS.keys() | {"headers", "time_limit", "soft_time_limit"}


class ContextAttributes:
    """The types of the attributes in `CONTEXT_DEFAULTS`. It gives them no values."""

    callbacks: Sequence[Any] | None
    called_directly: bool
    chain: Sequence[Any] | None
    errbacks: Sequence[Any] | None
    eta: str | None
    expires: str | None
    group: str | None
    group_index: int | None
    is_eager: bool
    logfile: str | None
    loglevel: int | None
    origin: str | None
    parent_id: str | None
    properties: Mapping[str, Any] | None
    replaced_task_nesting: int
    retries: int
    root_id: str | None
    shadow: str | None
    stamped_headers: Sequence[str] | None
    stamps: Mapping[str, Any] | None
    taskset: str | None
    timelimit: Sequence[float | None] | None
    utc: bool | None
