"""`SimpleRequest`, one call in the list that the body gets. Used in the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery.app.task import Context

from .core.context_keys import CONTEXT_DEFAULTS, NOT_CUSTOM, ContextAttributes
from .core.short_repr import short_repr
from .request_methods import RequestMethods

if TYPE_CHECKING:
    from celery.result import ResultBase
    from celery.worker.request import Request

__all__ = ("SimpleRequest", "context_of")

#: The attribute that is not pickled. It belongs to the run of a batch in one process.
_NOT_PICKLED = "outcome_slot"


class SimpleRequest(RequestMethods, ContextAttributes):
    """One call in the list that the body of a batch task gets. Picklable.

    You can also read every key of the call's context and every custom header as an attribute. The
    names are those of ``task.request`` in an ordinary task: ``root_id``, ``parent_id``, ``group``,
    ``group_index``, ``chain``, ``callbacks``, ``errbacks``, ``retries``, ``eta``, ``expires``,
    ``stamps``, ….

    Arguments:
        id: The id of the task.
        name: The name of the task, or its ``shadow`` name.
        args: Positional arguments.
        kwargs: Keyword arguments.
        delivery_info: The delivery of the message: ``exchange``, ``routing_key``, ``priority``,
            ``redelivered``.
        hostname: Node name of the worker.
        ignore_result: Whether to store no result of this call.
        reply_to: The queue in which an RPC caller waits for the result.
        correlation_id: The id of the call for an RPC caller.
        request_dict: The whole context of the call.
    """

    if TYPE_CHECKING:
        id: str
        name: str
    else:
        id = name = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    delivery_info: dict[str, Any] | None = None
    hostname: str | None = None
    ignore_result: bool = False
    reply_to: str | None = None
    correlation_id: str | None = None
    request_dict: dict[str, Any] | None = None

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
    def from_request(cls, request: Request) -> SimpleRequest:
        """Make one from the ``celery.worker.request.Request`` of a received message."""
        # With task protocol 1 Celery has decoded the body, and the request has no content type.
        body = request.body if request.content_type is None else request.message.payload
        context = {**request.request_dict, **(body[2] or {})}
        # Only the process that runs a call eagerly says so, not a message.
        context.pop("is_eager", None)
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

    if not TYPE_CHECKING:  # For type checkers, an unknown name is an error.

        def __getattr__(self, name: str) -> Any:
            # Python calls this only if there is no such attribute.
            context = self.request_dict
            if context is not None and name in context:
                return context[name]
            try:
                return CONTEXT_DEFAULTS[name]
            except KeyError:
                raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}") from None

    def as_execution_options(self) -> dict[str, Any]:
        """Return the options to publish this call again, as ``Context.as_execution_options``."""
        options: dict[str, Any] = context_of(self).as_execution_options()
        return options

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute ``key``, or ``default`` if there is none."""
        return getattr(self, key, default)

    @property
    def chord(self) -> Any:
        """The signature of the chord body that waits for this call, or ``None``."""
        return (self.request_dict or {}).get("chord")

    @property
    def children(self) -> list[ResultBase]:
        """Results of its links and of the next task of its chain, after they are sent.

        Calls that the body makes belong to the whole batch and are not in this list.
        """
        return [] if self.outcome_slot is None else list(self.outcome_slot.children)

    @property
    def headers(self) -> dict[str, Any] | None:
        """Custom headers of the message, or ``None`` if there are none."""
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
        # This runs for each message, so pickle's own C code does the rest.
        state = self.__dict__
        if _NOT_PICKLED not in state:
            return state
        return {key: value for key, value in state.items() if key != _NOT_PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Without this method, pickle would first look it up through `__getattr__`.
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.name}[{self.id}] "
            f"args={short_repr(self.args)} kwargs={short_repr(self.kwargs)}>"
        )


def context_of(request: SimpleRequest, task_name: str | None = None) -> Context:
    """Return the ``celery.app.task.Context`` of an ordinary task for this call."""
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
