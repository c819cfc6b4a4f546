"""A batch task that is traced in this process, and what its callbacks and its broker get."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery import signals
from celery.exceptions import (
    Retry,
)
from kit.messages import protocol_2
from kit.requests import worker_request

from celery_batches import Batches, SimpleRequest
from celery_batches.pool.trace import trace_batch

IDS = ["id-0", "id-1", "id-2"]
WAYS = ["method", "idiom"]


class World:
    """A batch task, what its callbacks were called with, and what it has sent."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.app = app
        self.options = {"name": "unit.click", "base": Batches, **options}
        self.called: list[Any] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.task: Any = None

        @app.task(name="unit.callback")
        def callback(value: Any) -> None:
            self.called.append(("callback", value))

        @app.task(name="unit.following")
        def following(value: Any) -> None:
            self.called.append(("following", value))

        @app.task(name="unit.errback")
        def errback(request: Any, exc: Any, traceback: Any) -> None:
            self.called.append(("errback", request.id))

        self.callback, self.following, self.errback = callback, following, errback
        app.conf.task_always_eager = True
        app.conf.task_store_eager_result = True
        signals.before_task_publish.connect(self._on_publish, weak=False)

    def _on_publish(self, sender: Any, body: Any, headers: Any, properties: Any, **_: Any) -> None:
        self.sent.append(
            (sender, {**headers, "body": body, "priority": properties.get("priority")})
        )

    def define(self, body: Any, **options: Any) -> Any:
        body = body if "<" not in body.__name__ else _named(body)
        self.task = self.app.task(**{**self.options, **options})(body)
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


def _named(function: Any) -> Any:
    """Celery writes the name of a body into code."""
    function.__name__ = "body"
    return function


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


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno == level and r.name.startswith("celery_batches")
    ]
