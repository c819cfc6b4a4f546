"""A batch of real requests on its way through the pool, and what each of them is told."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.worker import state as worker_state
from celery.worker.request import Request
from kombu.common import QoS

from celery_batches.worker.job import BatchJob
from celery_batches.worker.prefetch import Prefetch
from kit.messages import protocol_2
from kit.pool import Pool, einfo_of
from kit.requests import worker_request
from kit.tasks import make_task


class RecordedJob:
    """A batch of real requests, whose callbacks are recorded before Celery's own run."""

    def __init__(self, app: Celery, size: int = 3, **options: Any) -> None:
        headers = options.pop("headers", [{}] * size)

        self.task = click = make_task(app, **options)
        self.told: list[tuple[Any, ...]] = []
        self.broken: set[str] = set()
        self.messages = [protocol_2(app, f"id-{i}", click.name, **headers[i]) for i in range(size)]
        self.requests = [worker_request(app, click, message) for message in self.messages]
        for request in self.requests:
            for name in ("on_accepted", "on_success", "on_failure", "on_timeout"):
                self._spy(request, name)
        self.prefetch = Prefetch(QoS(lambda prefetch_count: None, 4), lambda: 4)
        self.job = BatchJob(
            *(click, self.requests),
            trigger="size",
            hostname="w@h",
            charge=self.prefetch.charge(size),
        )
        self.pool = Pool()

    def _spy(self, request: Request, name: str) -> None:
        original = getattr(request, name)

        def spy(*args: Any, **kwargs: Any) -> Any:
            self.told.append((name, request.id, *args))
            if request.id in self.broken:
                raise RuntimeError("broken callback")
            return original(*args, **kwargs)

        setattr(request, name, spy)

    @property
    def released(self) -> bool:
        """Whether the batch is charged for no more."""
        return self.prefetch.total == 4

    @property
    def finished(self) -> bool:
        """Whether it counts as a task no more."""
        return self.prefetch.busy(0, 0) == 0

    def send(self) -> dict[str, Any]:
        self.job.execute_using_pool(self.pool)
        (call,) = self.pool.calls
        return call.options

    def drop(self) -> None:
        """Its connection is lost."""
        for request in self.job.withdraw():
            worker_state.task_ready(request)

    def ids_told(self, name: str) -> list[str]:
        return [told[1] for told in self.told if told[0] == name]

    @property
    def said(self) -> list[list[str]]:
        return [[what for what, _ in message.channel.said] for message in self.messages]


OK = (False, [(False, "None")] * 3, 0.5)


def boom() -> ExceptionInfo:
    return einfo_of(KeyError("boom"))
