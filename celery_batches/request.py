"""`SimpleRequest`: one call, as the body of a batch task sees it. Used in the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from celery.app.task import Context

from .core.context_keys import CONTEXT_DEFAULTS, NOT_CUSTOM
from .core.outcomes import Done, Failed, Outcome, Rejected, Retried
from .core.short_repr import short_repr
from .core.slot import OutcomeSlot

__all__ = ("SimpleRequest", "context_of", "slot_of")

#: What only those who run a call may say of it.
_NOT_FROM_MESSAGES = ("is_eager",)

#: What is not pickled: what the run of a batch has recorded is of no use elsewhere.
_NOT_PICKLED = "outcome_slot"


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

    #: Where its outcome is recorded: a slot of its own from the moment that a batch binds it.
    outcome_slot: OutcomeSlot[SimpleRequest] | None = None

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
        self._record(Done(result))

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
        self._record(Failed(exc))

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
        self._record(Retried(exc, {**given, **options}))

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
        self._record(Rejected(requeue=bool(requeue)))

    def _record(self, outcome: Outcome) -> None:
        slot = slot_of(self)
        # Looked at again, since the batch may end meanwhile.
        if (slot.closed or not slot.record(outcome)) and slot.closed:
            raise RuntimeError(
                f"{self!r}: its batch is over, so it cannot be {outcome.kind} any more; do that "
                f"before the body of the task returns"
            )

    def as_execution_options(self) -> dict[str, Any]:
        """Return the options that send this call again, as ``Context.as_execution_options``."""
        options: dict[str, Any] = context_of(self).as_execution_options()
        return options

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
        return [] if self.outcome_slot is None else list(self.outcome_slot.children)

    @property
    def headers(self) -> dict[str, Any] | None:
        """Custom headers of the message, or ``None`` without any."""
        context = self.request_dict or {}
        if context.get("headers") is not None:
            headers: dict[str, Any] = context["headers"]
            return headers
        return {k: v for k, v in context.items() if k not in NOT_CUSTOM} or None

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
        if _NOT_PICKLED not in state:
            return state
        return {key: value for key, value in state.items() if key != _NOT_PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # As pickle does by itself, after it has asked `__getattr__` in vain for this method.
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.name}[{self.id}] "
            f"args={short_repr(self.args)} kwargs={short_repr(self.kwargs)}>"
        )


def context_of(request: SimpleRequest, task_name: str | None = None) -> Context:
    """Return the ``celery.app.task.Context`` that an ordinary task would have for this call."""
    return Context(
        request.request_dict or {},
        id=request.id,
        task=task_name or request.name,
        args=request.args,
        kwargs=request.kwargs,
        hostname=request.hostname,
        delivery_info=request.delivery_info,
        reply_to=request.reply_to,
        correlation_id=request.correlation_id,
        ignore_result=request.ignore_result,
        called_directly=False,
    )


def slot_of(request: SimpleRequest) -> OutcomeSlot[SimpleRequest]:
    """Return the outcome slot of a request. Without a batch, it gets one that nobody reads."""
    slot = request.outcome_slot
    if slot is None:
        slot = request.__dict__.setdefault("outcome_slot", OutcomeSlot())
    return slot
