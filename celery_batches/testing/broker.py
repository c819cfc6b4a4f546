"""Stands in for the broker: makes the message of a call, and records what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery.utils.functional import maybe_list
from kombu import Message
from kombu.serialization import dumps, prepare_accept_content

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("Channel", "make_message")

#: The options of a task that are also options of each call.
TASK_OPTIONS = (
    *("expires", "ignore_result", "priority", "serializer", "soft_time_limit", "time_limit"),
)
#: The names of calling options in a message.
MESSAGE_NAMES = {"link": "callbacks", "link_error": "errbacks"}


class Channel:
    """Stands in for a transport's channel: it records what the broker would be told."""

    no_ack_consumers: frozenset[str] = frozenset()

    def __init__(self) -> None:
        #: What was said of which delivery: ``ack``, ``reject`` or ``requeue``.
        self.said: list[tuple[str, Any]] = []

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Record an acknowledgement."""
        self.said.append(("ack", delivery_tag))

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Record a rejection."""
        self.said.append(("requeue" if requeue else "reject", delivery_tag))

    def of(self, delivery_tag: Any) -> list[str]:
        """Return what was said of one delivery."""
        return [what for what, about in self.said if about == delivery_tag]


def make_message(
    task: Batches,
    task_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    now: datetime,
) -> Message:
    """Make the message of a call, as the broker delivers it.

    Arguments:
        task: The task that is called.
        task_id: The id of the call.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        options: Those of ``apply_async``.
        now: The time at which it is sent.

    Raises:
        kombu.exceptions.EncodeError: If the serializer of the task cannot encode the arguments.
        TypeError: If the arguments are no list or tuple, or the keyword arguments no mapping.
    """
    app = task.app
    own = {name: getattr(task, name) for name in TASK_OPTIONS}
    given = {**{name: value for name, value in own.items() if value is not None}, **options}
    headers = given.pop("headers", None) or {}
    for name, message_name in MESSAGE_NAMES.items():
        given[message_name] = maybe_list(given.pop(name, None))
    sent = app.amqp.as_task_v2(task_id, task.name, args, kwargs, now=now, **given)
    serializer = given.get("serializer") or app.conf.task_serializer
    content_type, content_encoding, body = dumps(sent.body, serializer=serializer)
    priority = {"priority": given["priority"]} if "priority" in given else {}
    return Message(
        body=body,
        delivery_tag=task_id,
        content_type=content_type,
        content_encoding=content_encoding,
        delivery_info={
            "exchange": "",
            "routing_key": given.get("queue") or app.conf.task_default_queue,
            "redelivered": False,
        },
        properties={**sent.properties, **priority},
        headers={**sent.headers, **headers},
        channel=Channel(),
        accept=prepare_accept_content(app.conf.accept_content),
    )
