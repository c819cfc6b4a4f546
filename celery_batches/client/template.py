"""Shortcut ``message_templates``: makes messages as copies of one that Celery has made.

Runs in the process that sends calls. Celery makes the first message of each chunk. The others
differ in ids, arguments and the text of the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery.result import AsyncResult
from celery.utils.saferepr import saferepr
from kombu import Producer

from ..compat import repr_levels
from .calls import Call
from .collecting import CollectingProducer

if TYPE_CHECKING:
    from celery import Task

__all__ = ("MessageTemplate",)

#: The headers of a task message of protocol 2, and those of Celery 5.4 and newer.
HEADERS = frozenset(
    (
        *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
        *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin"),
        *("ignore_result", "stamped_headers", "stamps"),
    )
)
NEWER_HEADERS = ("replaced_task_nesting",)


class MessageTemplate:
    """What the messages of a chunk have in common."""

    def __init__(
        self,
        task: Task,
        options: Mapping[str, Any],
        collecting: CollectingProducer,
        result: AsyncResult,
        embed: dict[str, Any],
        publish_options: dict[str, Any],
    ) -> None:
        self._task = task
        self._app = task.app
        self._collecting = collecting
        self._ignored = result.ignored
        self._embed = embed
        # What it needs is declared.
        self._options = {**publish_options, "retry": False, "declare": []}
        self._headers = publish_options["headers"]
        self._is_root = self._headers["root_id"] == self._headers["id"]
        self._has_argsrepr = options.get("argsrepr") is not None
        self._has_kwargsrepr = options.get("kwargsrepr") is not None
        self._args_size = self._app.amqp.argsrepr_maxsize
        self._kwargs_size = self._app.amqp.kwargsrepr_maxsize
        self._levels = repr_levels(self._app)
        self._adds_to_parent = options.get("add_to_parent", True)
        self._parent = self._current_parent()

    @classmethod
    def of(
        cls,
        task: Task,
        options: Mapping[str, Any],
        collecting: CollectingProducer,
        call: Call,
        result: AsyncResult,
    ) -> MessageTemplate | None:
        """Make a template of the message that was collected last.

        Arguments:
            task: The task.
            options: The options of all calls.
            collecting: The producer that has collected the message.
            call: The call that it is for.
            result: Its result.

        Returns:
            The template. None if it would not make this same message of the call.
        """
        if collecting.published is None:
            return None
        body, publish_options = collecting.published
        headers = publish_options["headers"]
        names = {*HEADERS, *NEWER_HEADERS, *(options.get("headers") or ())}
        if not (isinstance(body, tuple) and len(body) == 3 and names >= headers.keys() >= HEADERS):
            return None
        made = cls(task, options, collecting, result, body[2], publish_options)
        remade = made.make(call.args, call.kwargs, call.task_id)
        is_same = remade == (body, {**publish_options, "retry": False, "declare": []})
        # Made again with another id, nothing has this one.
        _, other = made.make(call.args, call.kwargs, "other")
        values = (*other.values(), *other["headers"].values())
        return made if is_same and call.task_id not in values else None

    def is_valid(self) -> bool:
        """Whether the task in which the calls are made is still the same."""
        return self._parent == self._current_parent()

    def make(self, args: Any, kwargs: Any, task_id: str) -> tuple[Any, dict[str, Any]]:
        """Return the arguments for the producer.

        Raises:
            TypeError: If ``args`` is not a list or tuple, or ``kwargs`` not a mapping.
        """
        args, kwargs = args or (), kwargs or {}
        if not isinstance(args, list | tuple):
            raise TypeError("task args must be a list or tuple")
        if not isinstance(kwargs, Mapping):
            raise TypeError("task keyword arguments must be a mapping")
        headers = {**self._headers, "id": task_id}
        if self._is_root:
            headers["root_id"] = task_id
        if not self._has_argsrepr:
            headers["argsrepr"] = saferepr(args, self._args_size, maxlevels=self._levels)
        if not self._has_kwargsrepr:
            headers["kwargsrepr"] = (
                saferepr(kwargs, self._kwargs_size, maxlevels=self._levels) if kwargs else "{}"
            )
        options = {**self._options, "headers": headers, "correlation_id": task_id}
        return (args, kwargs, self._embed), options

    def publish(self, args: Any, kwargs: Any, task_id: str) -> None:
        """Do for one call what ``apply_async`` does."""
        task = self._task
        if task.typing and (check_arguments := getattr(task, "__header__", None)):
            check_arguments(*(args or ()), **(kwargs or {}))
        body, options = self.make(args, kwargs, task_id)
        Producer.publish(self._collecting, body, **options)
        if self._parent is not None and self._adds_to_parent:
            result = task.AsyncResult(task_id)
            result.ignored = self._ignored
            self._parent[0].add_trail(result)

    def _current_parent(self) -> tuple[Any, ...] | None:
        """Return the task that runs, and of its request what its calls inherit."""
        parent = self._app.current_worker_task
        if not parent:
            return None
        request = parent.request
        return parent, request.id, request.root_id, (request.delivery_info or {}).get("priority")
