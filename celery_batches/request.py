"""`SimpleRequest`: one call, as the body of a batch task sees it. Pure. Used in the pool."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from .core.outcomes import Outcome

__all__ = ("BATCH", "CONTEXT_KEYS", "SimpleRequest", "running_batch")

#: Where the context of a batch keeps what runs it: no name that a header has.
BATCH = "_celery_batches_running"

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

#: What only those who run a call may say of it.
_NOT_FROM_MESSAGES = ("is_eager", BATCH)

#: Keys of a context that are not custom headers: the headers of task protocol 2, what it embeds in
#: the body, and what the worker adds on receipt.
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
_NOT_CUSTOM = CONTEXT_KEYS | CONTEXT_DEFAULTS.keys() | {"headers", "time_limit", "soft_time_limit"}

#: What is not pickled: what the run of a batch has noted here is of no use elsewhere.
_NOT_PICKLED = frozenset({"_outcome", "_batch", "_over", "_children"})


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

    #: What has been noted of how it ended, here and in the result backend.
    _outcome: Outcome | None = None
    #: What runs the batch that it is in, while the body runs.
    _batch: Any = None
    #: Whether that batch is over.
    _over: bool = False
    #: Results of the tasks that it has set off.
    _children: Sequence[Any] = ()

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
        for key in _NOT_FROM_MESSAGES:
            context.pop(key, None)
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

    def mark_as_done(self, result: Any = None) -> None:
        """Succeed with this result, as a task that returns it.

        Takes effect when the body ends, also if it raises: the result goes to the result backend,
        and what waits for this call (``link``, the next task of a chain, a chord) goes on. The
        first outcome of a request wins: any other after it is ignored.

        May be called from any thread.

        Arguments:
            result: What the caller of this call gets.

        Raises:
            RuntimeError: If the batch is over.
        """
        self._note(Outcome("done", result))

    def mark_as_failure(self, exc: Exception) -> None:
        """Fail with this exception, as a task that raises it. See `mark_as_done`.

        Arguments:
            exc: What the caller of this call gets raised.

        Raises:
            RuntimeError: If the batch is over.
            TypeError: If it is not an exception.
        """
        if not isinstance(exc, Exception):
            raise TypeError(
                f"{self!r}: mark_as_failure() takes an exception, such as ValueError('no such "
                f"user'), not {exc!r}"
            )
        self._note(Outcome("failed", exc))

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: Exception | None = None,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> None:
        """Send this call again under its own id, as ``Task.retry`` does. See `mark_as_done`.

        Arguments:
            args: Positional arguments to retry with, if not the same again.
            kwargs: Keyword arguments to retry with, if not the same again.
            exc: Why. It is what the call fails with when it has used up its retries; without it,
                that is ``MaxRetriesExceededError``.
            eta: The ``datetime.datetime`` to run it at.
            countdown: Seconds to wait. Defaults to the ``default_retry_delay`` of the task.
            max_retries: The limit for this call, this time. Defaults to that of the task.
            **options: Other calling options, such as ``queue`` or ``priority``.

        Raises:
            RuntimeError: If the batch is over.
            TypeError: If ``exc`` is not an exception or ``countdown`` is not a number.
        """
        if exc is not None and not isinstance(exc, Exception):
            raise TypeError(f"{self!r}: exc of retry() must be an exception, not {exc!r}")
        if countdown is not None and not isinstance(countdown, Real):
            raise TypeError(f"{self!r}: countdown of retry() is in seconds, not {countdown!r}")
        options.pop("throw", None)  # Of Task.retry(): there is nothing to raise here.
        given = {"args": args, "kwargs": kwargs, "eta": eta, "countdown": countdown}
        given["max_retries"] = max_retries
        self._note(Outcome("retried", exc, options={**given, **options}))

    def reject(self, requeue: bool = False) -> None:
        """Have the broker take the message back, as a task that raises ``Reject``.

        Has no effect on the message without ``acks_late``: it is acknowledged by then. See
        `mark_as_done`.

        Arguments:
            requeue: Whether it is to be delivered again. If not, it is dropped, or goes to the
                dead-letter exchange of its queue.

        Raises:
            RuntimeError: If the batch is over.
        """
        self._note(Outcome("rejected", options={"requeue": bool(requeue)}))

    def _enter(self, batch: Any) -> None:
        """Be part of a batch that is about to run."""
        self._batch, self._over = batch, False
        self.__dict__.pop("_outcome", None)

    def _leave(self) -> None:
        """Be told that the body is over."""
        self._batch, self._over = None, True
        # A thread that has found it not to be over yet is too late all the same.
        self.__dict__.setdefault("_outcome", None)

    def _sets_off(self) -> bool:
        """Whether something is sent when it is done."""
        get = (self.request_dict or {}).get
        return bool(get("callbacks") or get("chain"))

    def _is_waited_for(self) -> bool:
        """Whether something goes on when it is done."""
        return self._sets_off() or bool((self.request_dict or {}).get("chord"))

    def _has_followers(self) -> bool:
        """Whether something goes on when it has ended, in whichever way."""
        return self._is_waited_for() or bool((self.request_dict or {}).get("errbacks"))

    def _note(self, outcome: Outcome) -> None:
        # Looked at again, since the batch may end meanwhile.
        if (self._over or not self._settle(outcome)) and self._over:
            raise RuntimeError(
                f"{self!r}: its batch is over, so it cannot be {outcome.kind} any more; do that "
                f"before the body of the task returns"
            )

    def _settle(self, outcome: Outcome) -> bool:
        """Note how this request ended; return whether it was news. The first outcome wins."""
        # One step, since helper threads of the body may settle requests.
        return self.__dict__.setdefault("_outcome", outcome) is outcome

    def _unsettle(self, *, to: Outcome | None) -> None:
        """Correct what the caller has settled itself, which then turned out otherwise."""
        if to is None:
            self.__dict__.pop("_outcome")
        else:
            self.__dict__["_outcome"] = to

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute ``key``, or ``default`` when there is none."""
        return getattr(self, key, default)

    @property
    def chord(self) -> Any:
        """The chord body that waits for this call, as a signature, or ``None``."""
        return (self.request_dict or {}).get("chord")

    @property
    def children(self) -> list[Any]:
        """Results of its callbacks and of the next task of its chain, once they were sent.

        Calls made by the body belong to the whole batch, and are not here.
        """
        return list(self._children)

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

    def __getstate__(self) -> dict[str, Any]:
        # Each message costs this, so the rest is left to pickle's own code, which is in C.
        state = self.__dict__
        if state.keys().isdisjoint(_NOT_PICKLED):
            return state
        return {key: value for key, value in state.items() if key not in _NOT_PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # As pickle does by itself, after it has asked `__getattr__` in vain for this method.
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.name}[{self.id}] "
            f"args={_short.repr(self.args)} kwargs={_short.repr(self.kwargs)}>"
        )


def running_batch(task: Any) -> Any:
    """Return what runs the batch that is the current request of the task, if it is one."""
    return task.request.get(BATCH)
