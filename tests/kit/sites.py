"""Batch tasks whose states are stored in a real backend, and what is stored there."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
import redis
from kombu.utils.uuid import uuid

from celery_batches import SimpleRequest
from celery_batches.pool.trace import trace_batch
from kit.messages import protocol_2
from kit.requests import task_context, worker_request
from kit.tasks import make_task

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)

#: In a transaction, and without another connection being made.
ROUND_TRIPS = ["MGET", "MULTI"]


class Frozen(datetime):
    """What Celery before 5.4 asks for the time."""

    @classmethod
    def utcnow(cls) -> Any:  # Without a time zone, where its own returns an instance of it.
        return NOW.replace(tzinfo=None)


class Failure(Exception):
    pass


class Site:
    """A batch task, whose calls say by their argument how they end."""

    def __init__(self, app: Any, backend: str, **config: Any) -> None:
        self.app = app
        self.prefix = f"test-{uuid()}_"
        app.conf.result_backend = backend
        app.conf.result_backend_transport_options = {
            **config.pop("transport", {}),
            "global_keyprefix": self.prefix,
        }
        app.conf.result_accept_content = ["json", "pickle"]
        app.conf.update(config)
        self.body: Callable[[Any], None] = self.mark

        self.task = make_task(app, lambda requests: self.body(requests), flush_every=100)

    @staticmethod
    def mark(requests: Any) -> None:
        for request in requests:
            (way,) = request.args
            if way == "fail":
                request.mark_as_failure(Failure("no", 1))
            elif way == "function":
                request.mark_as_done(lambda: None)
            elif way != "nothing":
                request.mark_as_done({"way": way})

    @property
    def backend(self) -> Any:
        return self.app.backend

    def received(self, *calls: Any, **common: Any) -> list[Any]:
        """What a worker makes of such calls, each of which may have options of its own."""
        made = []
        for n, call in enumerate(calls):
            way, options = (call, {}) if isinstance(call, str) else call
            options = {"task_id": f"id-{n}", **common, **options}
            message = protocol_2(self.app, name="unit.click", args=[way], **options)
            made.append(worker_request(self.app, self.task, message))
        return made

    def run(self, messages: list[Any]) -> list[tuple[bool, Any]]:
        requests = [SimpleRequest.from_request(message) for message in messages]
        broken, reports, _ = trace_batch("unit.click", "batch", requests, "size", "w@h")
        assert broken is False
        return reports

    def run_alone(self, messages: list[Any], reports: list[tuple[bool, Any]]) -> None:
        """Do as Celery does for ordinary tasks that end like this."""
        for message, (failed, report) in zip(messages, reports, strict=True):
            request = task_context(message)
            (way,) = request.args
            if failed:
                self.backend.mark_as_failure(
                    request.id,
                    report.exception.exc,
                    report.traceback,
                    request=request,
                    store_result=not request.ignore_result
                    or self.task.store_errors_even_if_ignored,
                )
            elif way != "nothing":
                self.backend.mark_as_done(request.id, {"way": way}, request)


def _connect(url: str) -> Any:
    """A client, of which only newer releases are typed."""
    return redis.Redis.from_url(url)


class RedisSite(Site):
    """The same with Redis, where a test also sees what is published."""

    def __init__(self, app: Any, url: str, **config: Any) -> None:
        super().__init__(app, url, **config)
        self.client = _connect(url)
        self.pubsub = self.client.pubsub(ignore_subscribe_messages=True)
        self.pubsub.psubscribe(f"{self.prefix}*")
        # Once this has come, so will all that follow.
        self.published()

    def close(self) -> None:
        self.clear()
        self.pubsub.close()
        self.client.close()

    def clear(self) -> None:
        for key in self.keys():
            self.client.delete(key)

    def keys(self) -> list[bytes]:
        return sorted(self.client.scan_iter(f"{self.prefix}*", count=10_000))

    def stored(self) -> dict[bytes, tuple[bytes, int]]:
        """The value of each key, and the seconds it is kept."""
        return {key: (self.client.get(key), self.client.ttl(key)) for key in self.keys()}

    def published(self) -> list[tuple[bytes, bytes]]:
        """What was published since the last time."""
        end = self.prefix + uuid()
        found: list[tuple[bytes, bytes]] = []
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            self.client.publish(end, "")
            while message := self.pubsub.get_message(timeout=1):
                if message["channel"].decode() == end:
                    return found
                if message["data"]:
                    found.append((message["channel"], message["data"]))
        raise AssertionError("nothing is published")

    def states(self, *numbers: int) -> list[str]:
        return [self.backend.get_task_meta(f"id-{n}", cache=False)["status"] for n in numbers]


CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "extended": {"result_extended": True},
    "pickle": {"result_serializer": "pickle"},
    "compressed": {"result_compression": "gzip", "result_extended": True},
    "expires 0": {"result_expires": 0},
    "never expires": {"result_expires": None},
    "expires": {"result_expires": 3600, "result_failure_expires": 1800},
}

CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in a group": {"group_id": "g", "group_index": 1, "parent_id": "p", "root_id": "r"},
    "stamped": {"stamped_headers": ["customer"], "customer": ["ACME"]},
    "ignored": {"ignore_result": True},
}


def same(stored: dict[bytes, tuple[bytes, int]]) -> dict[bytes, tuple[bytes, Any]]:
    """The time goes by while the keys are read."""
    return {key: (value, pytest.approx(ttl, abs=90)) for key, (value, ttl) in stored.items()}
