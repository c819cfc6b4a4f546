"""A batch task that is traced in this process, and what its callbacks and its broker get."""

from __future__ import annotations

import pickle
from typing import Any

from celery import signals
from celery.exceptions import Retry

from celery_batches import SimpleRequest
from celery_batches.pool.trace import trace_batch
from kit.messages import IDS, protocol_2
from kit.requests import worker_request
from kit.tasks import make_task

WAYS = ["method", "idiom"]


class World:
    """A batch task, what its callbacks were called with, and what it has sent."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.app = app
        self.options = options
        self.called: list[Any] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.task: Any = None

        def callback(value: Any) -> None:
            self.called.append(("callback", value))

        def following(value: Any) -> None:
            self.called.append(("following", value))

        def errback(request: Any, exc: Any, traceback: Any) -> None:
            self.called.append(("errback", request.id))

        self.callback = app.task(name="unit.callback")(callback)
        self.following = app.task(name="unit.following")(following)
        self.errback = app.task(name="unit.errback")(errback)
        app.conf.task_always_eager = True
        app.conf.task_store_eager_result = True
        signals.before_task_publish.connect(self._on_publish, weak=False)

    def _on_publish(self, sender: Any, body: Any, headers: Any, properties: Any, **_: Any) -> None:
        self.sent.append(
            (sender, {**headers, "body": body, "priority": properties.get("priority")})
        )

    def define(self, body: Any, **options: Any) -> Any:
        self.task = make_task(self.app, body, **{**self.options, **options})
        return self.task

    def requests(self, *headers: dict[str, Any], **common: Any) -> list[SimpleRequest]:
        each = [*headers, *([{}] * (3 - len(headers)))]
        made = []
        for id, own in zip(IDS, each, strict=False):
            message = protocol_2(self.app, id, self.task.name, [id], **{**common, **own})
            made.append(SimpleRequest.from_request(worker_request(self.app, self.task, message)))
        return made

    def run(self, body: Any, *headers: dict[str, Any], **common: Any) -> list[tuple[bool, Any]]:
        if self.task is None:
            self.define(body)
        requests = self.requests(*headers, **common)
        broken, reports, _ = trace_batch(self.task.name, "batch", requests, "size", "w@h")
        assert broken is False
        pickle.dumps(reports)
        return reports

    @property
    def states(self) -> list[str]:
        return [self.app.AsyncResult(id).state for id in IDS]


def exceptions(reports: list[tuple[bool, Any]]) -> list[Any]:
    """What each report is about, as `Request.on_success` looks at it."""
    found = []
    for failed, report in reports:
        exc = report.exception if failed else None
        found.append(getattr(exc, "exc", exc) if not isinstance(exc, Retry) else exc)
    return found


def mark_done(world: World, way: str, request: SimpleRequest, value: Any) -> None:
    if way == "method":
        request.mark_as_done(value)
    else:
        world.app.backend.mark_as_done(request.id, value, request=request)


def mark_failed(world: World, way: str, request: SimpleRequest, exc: Exception) -> None:
    if way == "method":
        request.mark_as_failure(exc)
    else:
        world.app.backend.mark_as_failure(request.id, exc, request=request)
