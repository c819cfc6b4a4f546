"""How a request's context travels to the pool: its usual keys are left out. Pure."""

from __future__ import annotations

from sys import intern
from typing import Any

__all__ = ("PACKED", "PACKED_KEYS", "pack", "unpack")

#: Keys that travel as a bare tuple of values when a request is pickled: the headers of task
#: protocol 2, what it embeds in the body, and what the worker adds on receipt.
PACKED_KEYS = (
    *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
    *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result"),
    *("replaced_task_nesting", "stamped_headers", "stamps", "compression"),
    *("callbacks", "errbacks", "chain", "chord"),
    *("properties", "reply_to", "correlation_id", "hostname", "delivery_info", "args", "kwargs"),
)
PACKED = frozenset(PACKED_KEYS)
_PACKED_COUNT = len(PACKED_KEYS)

#: Keys that are in the request but were not in the message's headers.
_NOT_HEADERS = frozenset(PACKED_KEYS[PACKED_KEYS.index("callbacks") :])


def pack(context: dict[str, Any] | None) -> tuple[Any, ...] | None:
    """Turn a context into a tuple without its usual keys, ``...`` standing for a missing one."""
    if context is None:
        return None
    get = context.get
    values: list[Any] = [get(key, ...) for key in PACKED_KEYS]
    others = {key: value for key, value in context.items() if key not in PACKED}
    properties = get("properties")
    if properties:
        # Brokers' clients make these keys anew for each message; pickle writes a key once only
        # if it is the same object.
        properties = {intern(key): value for key, value in properties.items()}
        headers = properties.get("application_headers")
        if headers and _NOT_HEADERS.isdisjoint(headers):
            # AMQP repeats the headers here: they are put back on arrival.
            properties["application_headers"] = ...
        values[PACKED_KEYS.index("properties")] = properties
    return (*values, others or None)


def unpack(packed: tuple[Any, ...] | None) -> dict[str, Any] | None:
    """Undo `pack`."""
    if packed is None:
        return None
    context = {
        key: value for key, value in zip(PACKED_KEYS, packed, strict=False) if value is not ...
    }
    others = packed[_PACKED_COUNT]
    if others:
        context.update(others)
    properties = context.get("properties")
    if properties and properties.get("application_headers") is ...:
        properties["application_headers"] = {
            key: value for key, value in context.items() if key not in _NOT_HEADERS
        }
    return context
