"""Messages as a broker delivers them, in each version of Celery's protocol."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Message
from kombu.serialization import dumps

from kit.channel import Channel

#: Of the first calls of a test.
IDS = ["id-0", "id-1", "id-2"]

#: What an option of `make_message` is called.
MESSAGE_OPTIONS = ("amqp", "channel", "redelivered")


def make_message(
    payload: Any,
    headers: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
    *,
    serializer: str = "json",
    amqp: bool = False,
    channel: Any = None,
    redelivered: bool = False,
) -> Message:
    """A message with that decoded body; AMQP clients repeat the headers in the properties."""
    content_type, content_encoding, body = dumps(payload, serializer=serializer)
    headers = dict(headers or {})
    properties = dict(properties or {})
    if amqp:
        properties["application_headers"] = headers
    return Message(
        body=body,
        delivery_tag="tag",
        content_type=content_type,
        content_encoding=content_encoding,
        delivery_info={"exchange": "", "routing_key": "celery", "redelivered": redelivered},
        properties=properties,
        headers=headers,
        channel=channel or Channel(),
        accept={"application/json", "application/x-python-serialize"},
    )


def _take_message_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options.pop(name) for name in MESSAGE_OPTIONS if name in options}


def protocol_2(
    app: Celery, task_id: str, name: str, args: Any = (), kwargs: Any = None, **options: Any
) -> Message:
    """A call as Celery sends it.

    Arguments:
        app: The app that sends it.
        task_id: The id of the call.
        name: The name of the task.
        args: Its arguments.
        kwargs: Its keyword arguments.
        options: Those of ``apply_async``, those of `make_message`, and ``more_headers``.
    """
    message = _take_message_options(options)
    more_headers = options.pop("more_headers", {})
    priority = {"priority": options.pop("priority")} if "priority" in options else {}
    sent = app.amqp.as_task_v2(task_id, name, args, kwargs or {}, **options)
    headers, properties = {**sent.headers, **more_headers}, {**sent.properties, **priority}
    return make_message(sent.body, headers, properties, **message)


def protocol_1(
    app: Celery, task_id: str, name: str, args: Any = (), kwargs: Any = None, **options: Any
) -> Message:
    """A call in the protocol before Celery 4: all of it is in the body."""
    message = _take_message_options(options)
    sent = app.amqp.as_task_v1(task_id, name, args, kwargs or {}, **options)
    return make_message(sent.body, sent.headers, sent.properties, **message)


def hybrid(
    app: Celery, task_id: str, name: str, args: Any = (), kwargs: Any = None, **options: Any
) -> Message:
    """The body of protocol 1 with headers as in protocol 2."""
    message = _take_message_options(options)
    sent = app.amqp.as_task_v1(task_id, name, args, kwargs or {}, **options)
    headers = {"lang": "py", "task": name, "id": task_id, "root_id": task_id}
    return make_message(sent.body, headers, sent.properties, **message)


PROTOCOLS = [protocol_2, protocol_1, hybrid]
