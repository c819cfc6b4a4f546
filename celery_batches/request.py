"""`SimpleRequest`: one call, as the body of a batch task sees it. Pure. Used in the pool."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from sys import intern
from typing import Any

from .outcomes import Outcome

__all__ = ("SimpleRequest",)

#: What a running task's context says of anything that its message leaves out
#: (the defaults of ``celery.app.task.Context``).
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

#: Keys that travel as a bare tuple of values when a request is pickled: the headers of task
#: protocol 2, what it embeds in the body, and what the worker adds on receipt.
PACKED_KEYS = (
    *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
    *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result"),
    *("replaced_task_nesting", "stamped_headers", "stamps", "compression"),
    *("callbacks", "errbacks", "chain", "chord"),
    *("properties", "reply_to", "correlation_id", "hostname", "delivery_info", "args", "kwargs"),
)
_PACKED = frozenset(PACKED_KEYS)
_PACKED_COUNT = len(PACKED_KEYS)

#: Every key that is not a custom header.
_NOT_CUSTOM = _PACKED | CONTEXT_DEFAULTS.keys() | {"headers", "time_limit", "soft_time_limit"}

#: Keys that are in the request but were not in the message's headers.
_NOT_HEADERS = frozenset(PACKED_KEYS[PACKED_KEYS.index("callbacks") :])

#: Own attributes, in the order of the constructor.
_FIELDS = (
    *("id", "name", "args", "kwargs", "delivery_info", "hostname"),
    *("ignore_result", "reply_to", "correlation_id", "request_dict"),
)


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # More digits than Python is willing to write.
            return f"<int of {x.bit_length()} bits>"


_short = _ShortRepr()


class SimpleRequest:
    """One call of a batch task, as its body sees it. Picklable.

    Next to the attributes listed here, every key of the call's context can be read as an
    attribute, with the names that ``task.request`` has in an ordinary task: ``root_id``,
    ``parent_id``, ``group``, ``group_index``, ``chain``, ``callbacks``, ``errbacks``, ``retries``,
    ``eta``, ``expires``, ``stamps``, …, and custom headers.

    Arguments:
        id: The id of the task.
        name: The name of the task, or the name it is shown under (``shadow``).
        args: Positional arguments.
        kwargs: Keyword arguments.
        delivery_info: How the message came: ``exchange``, ``routing_key``, ``priority``,
            ``redelivered``.
        hostname: Node name of the worker.
        ignore_result: Whether the result of this call is not wanted.
        reply_to: Where an RPC caller waits for the result.
        correlation_id: What such a caller knows the call by.
        request_dict: The whole context of the call.
    """

    id: str | None = None
    name: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    delivery_info: dict[str, Any] | None = None
    hostname: str | None = None
    ignore_result: bool = False
    reply_to: str | None = None
    correlation_id: str | None = None
    request_dict: dict[str, Any] | None = None

    _outcome: Outcome | None = None

    def __init__(
        self,
        id: str,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        delivery_info: dict[str, Any] | None,
        hostname: str | None,
        ignore_result: bool = False,
        reply_to: str | None = None,
        correlation_id: str | None = None,
        request_dict: dict[str, Any] | None = None,
    ) -> None:
        self.id = id
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.delivery_info = delivery_info
        self.hostname = hostname
        self.ignore_result = ignore_result
        self.reply_to = reply_to
        self.correlation_id = correlation_id
        self.request_dict = request_dict

    @classmethod
    def from_request(cls, request: Any) -> SimpleRequest:
        """Make one from the ``celery.worker.request.Request`` of a received message."""
        # A body that came in decoded (task protocol 1) has no content type of its own.
        body = request.body if request.content_type is None else request.message.payload
        context = {**request.request_dict, **(body[2] or {})}
        ignore_result = context.get("ignore_result")
        if ignore_result is None:
            ignore_result = request.task.ignore_result
        return cls(
            request.id,
            request.name,
            request.args,
            request.kwargs,
            request.delivery_info,
            request.hostname,
            bool(ignore_result),
            request.reply_to,
            request.correlation_id,
            context,
        )

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not an attribute of its own.
        context = self.request_dict
        if context is not None and name in context:
            return context[name]
        try:
            return CONTEXT_DEFAULTS[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}") from None

    def _settle(self, outcome: Outcome) -> None:
        """Note how this request ended. The first outcome wins."""
        if self._outcome is None:
            self._outcome = outcome

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute ``key``, or ``default`` when there is none."""
        return getattr(self, key, default)

    @property
    def chord(self) -> Any:
        """The chord body that waits for this call, as a signature, or ``None``."""
        return (self.request_dict or {}).get("chord")

    @property
    def children(self) -> list[Any]:
        """Always empty, since calls made by the body belong to the whole batch."""
        return []

    @property
    def headers(self) -> dict[str, Any] | None:
        """Custom headers of the message, or ``None`` without any."""
        context = self.request_dict or {}
        if context.get("headers") is not None:
            headers: dict[str, Any] = context["headers"]
            return headers
        return {k: v for k, v in context.items() if k not in _NOT_CUSTOM} or None

    @property
    def redelivered(self) -> bool:
        """Whether the broker has delivered this message before."""
        return bool((self.delivery_info or {}).get("redelivered"))

    @property
    def time_limit(self) -> float | None:
        """Hard time limit of this call in seconds, or ``None``."""
        return (self.timelimit or (None, None))[0]

    @property
    def soft_time_limit(self) -> float | None:
        """Soft time limit of this call in seconds, or ``None``."""
        return (self.timelimit or (None, None))[1]

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.__dict__
        extra = {k: v for k, v in state.items() if k not in _FIELDS}
        fields = tuple([state.get(k, getattr(type(self), k)) for k in _FIELDS[:-1]])
        return _restore, (type(self), fields, _pack(self.request_dict)), extra or None

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.name}[{self.id}] "
            f"args={_short.repr(self.args)} kwargs={_short.repr(self.kwargs)}>"
        )


def _pack(context: dict[str, Any] | None) -> tuple[Any, ...] | None:
    """Turn a context into a tuple without its usual keys, ``...`` standing for a missing one."""
    if context is None:
        return None
    get = context.get
    values: list[Any] = [get(key, ...) for key in PACKED_KEYS]
    others = {key: value for key, value in context.items() if key not in _PACKED}
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


def _unpack(packed: tuple[Any, ...] | None) -> dict[str, Any] | None:
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


def _restore(
    cls: type[SimpleRequest], fields: tuple[Any, ...], packed: tuple[Any, ...] | None
) -> SimpleRequest:
    self = cls.__new__(cls)
    self.__dict__.update(zip(_FIELDS, fields, strict=False))
    self.__dict__["request_dict"] = _unpack(packed)
    return self
