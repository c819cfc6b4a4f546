"""What the unit tests share: messages as a broker delivers them, and a worker's parts by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery.app.task import Context
from celery.bootsteps import RUN
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2
from kombu import Message
from kombu.common import QoS
from kombu.serialization import dumps

from celery_batches.worker.member_request import member_class
from celery_batches.worker.prefetch import Prefetch

HOSTNAME = "worker@unit"


class Channel:
    """Records what a message is told to say to the broker."""

    no_ack_consumers: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def basic_ack(self, tag: Any, **_: Any) -> None:
        self.said.append(("ack", tag))

    def basic_reject(self, tag: Any, requeue: bool = False) -> None:
        self.said.append(("requeue" if requeue else "reject", tag))


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


def protocol_2(
    app: Any, task_id: str, name: str, args: Any = (), kwargs: Any = None, **options: Any
) -> Message:
    message = {k: options.pop(k) for k in ("amqp", "channel", "redelivered") if k in options}
    more_headers = options.pop("more_headers", {})
    priority = {"priority": options.pop("priority")} if "priority" in options else {}
    sent = app.amqp.as_task_v2(task_id, name, args, kwargs or {}, **options)
    headers, properties = {**sent.headers, **more_headers}, {**sent.properties, **priority}
    return make_message(sent.body, headers, properties, **message)


def protocol_1(
    app: Any, task_id: str, name: str, args: Any = (), kwargs: Any = None, **options: Any
) -> Message:
    message = {k: options.pop(k) for k in ("amqp", "channel", "redelivered") if k in options}
    sent = app.amqp.as_task_v1(task_id, name, args, kwargs or {}, **options)
    return make_message(sent.body, sent.headers, sent.properties, **message)


def hybrid(
    app: Any, task_id: str, name: str, args: Any = (), kwargs: Any = None, **options: Any
) -> Message:
    """The body of protocol 1 with headers as in protocol 2."""
    message = {k: options.pop(k) for k in ("amqp", "channel", "redelivered") if k in options}
    sent = app.amqp.as_task_v1(task_id, name, args, kwargs or {}, **options)
    headers = {"lang": "py", "task": name, "id": task_id, "root_id": task_id}
    return make_message(sent.body, headers, sent.properties, **message)


PROTOCOLS = [protocol_2, protocol_1, hybrid]


def decode(message: Message) -> tuple[Any, dict[str, Any], bool, bool]:
    """Body, headers, decoded and utc, as Celery's strategy finds them."""
    payload = message.payload
    if isinstance(payload, dict):
        payload = dict(payload)
        convert = hybrid_to_proto2 if "args" in payload else proto1_to_proto2
        return convert(message, payload)
    return message.body, message.headers, False, True


def make_request(app: Any, task: Any, message: Message, **options: Any) -> Request:
    """A real request of Celery's worker, as its strategy makes it."""
    body, headers, decoded, utc = decode(message)
    cls = member_class(options.pop("cls", Request))
    options.setdefault("on_ack", message.ack_log_error)
    options.setdefault("on_reject", message.reject_log_error)
    request: Request = cls(
        message,
        app=app,
        task=task,
        hostname=HOSTNAME,
        body=body,
        headers=headers,
        decoded=decoded,
        utc=utc,
        **options,
    )
    return request


def task_context(request: Request) -> Context:
    """What ``task.request`` is in an ordinary task (as ``celery.app.trace`` makes it)."""
    body = request.body if request.content_type is None else request.message.payload
    args, kwargs, embed = body
    context = dict(request.request_dict)
    context.update(
        {"args": args, "kwargs": kwargs, "hostname": request.hostname, "is_eager": False},
        **embed or {},
    )
    return Context(context, args=args, called_directly=False, kwargs=kwargs)


class Timer:
    """A timer that fires when it is told to."""

    def __init__(self) -> None:
        self.entries: list[SimpleNamespace] = []

    def call_at(self, eta: float, fun: Any, args: Any = (), kwargs: Any = None, priority: int = 0):
        entry = SimpleNamespace(
            eta=eta, fun=fun, args=args, kwargs=kwargs or {}, priority=priority, cancelled=False
        )
        entry.cancel = lambda: setattr(entry, "cancelled", True)
        entry.tref = entry
        self.entries.append(entry)
        return entry

    def call_after(self, seconds: float, fun: Any, args: Any = (), kwargs: Any = None, **_: Any):
        return self.call_at(seconds, fun, args, kwargs)

    def cancel(self, entry: Any) -> None:
        entry.cancelled = True

    @property
    def armed(self) -> list[SimpleNamespace]:
        return [entry for entry in self.entries if not entry.cancelled]

    def fire(self, entry: Any) -> None:
        """Call an entry, as the timer does: even if it was cancelled a moment too late."""
        if entry in self.entries:
            self.entries.remove(entry)
        entry.fun(*entry.args, **entry.kwargs)


class FakeConsumer:
    """The part of Celery's consumer that a strategy sees. ``sent`` is what went to the pool."""

    hostname = HOSTNAME
    connection_errors = ()
    event_dispatcher = None
    disable_rate_limits = True
    pool = SimpleNamespace(apply_async=None, num_processes=2)

    def __init__(self, app: Any, *, prefetch: int = 4, connection: Any = None) -> None:
        self.app = app
        self.connection = connection or SimpleNamespace(
            transport=SimpleNamespace(driver_type="memory"), connection_errors=()
        )
        self.blueprint = SimpleNamespace(state=RUN)
        self.timer = Timer()
        self.prefetch_counts: list[int] = []
        self.initial_prefetch_count = prefetch
        # As Celery's step makes it, and ours.
        counter = QoS(lambda prefetch_count: self.prefetch_counts.append(prefetch_count), prefetch)
        self.qos = Prefetch(counter, lambda: self.initial_prefetch_count)
        self.task_buckets: dict[str, Any] = {}
        self.task_consumer = SimpleNamespace(channel=Channel(), cancel=self._cancel)
        self.cancelled = 0
        self.controller = SimpleNamespace(state=worker_state)
        self.strategies: dict[str, Any] = {}
        self.sent: list[Any] = []
        self.pending_operations: list[Any] = []

    def _cancel(self) -> None:
        self.cancelled += 1

    def perform_pending_operations(self) -> None:
        while self.pending_operations:
            self.pending_operations.pop(0)()

    def on_task_request(self, job: Any) -> None:
        self.sent.append(job)

    def _limit_task(self, *_: Any) -> None:
        raise AssertionError("a single request was rate limited")

    _limit_post_eta = _limit_task
    apply_eta_task = Consumer.apply_eta_task


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
