"""A batch of real requests on its way through a pool that keeps what it is given."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo
from celery.worker import state as worker_state
from kombu.common import QoS
from unit.support import make_request, protocol_2

from celery_batches import Batches
from celery_batches.worker.job import BatchJob
from celery_batches.worker.prefetch import Prefetch


class Pool:
    """Keeps what it is given, and hands out a handle that a weak reference can point to."""

    class Handle:
        def __init__(self) -> None:
            self.told: list[int] = []

        def terminate(self, signum: int) -> None:
            self.told.append(signum)

    def __init__(self, *, handle: bool = True) -> None:
        self.handle = self.Handle() if handle else None
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.options: dict[str, Any] = {}

    def apply_async(self, target: Any, **options: Any) -> Any:
        self.calls.append((target, options))
        return self.handle


class World:
    """A batch of real requests, whose callbacks are recorded before Celery's own run."""

    def __init__(self, app: Any, size: int = 3, **options: Any) -> None:
        headers = options.pop("headers", [{}] * size)

        @app.task(base=Batches, name="unit.click", **options)
        def click(requests: Any) -> None: ...

        self.task = click
        self.told: list[tuple[Any, ...]] = []
        self.broken: set[str] = set()
        self.messages = [protocol_2(app, f"id-{i}", click.name, **headers[i]) for i in range(size)]
        self.requests = [make_request(app, click, message) for message in self.messages]
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

    def _spy(self, request: Any, name: str) -> None:
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
        ((_, options),) = self.pool.calls
        return options

    def drop(self) -> None:
        """Its connection is lost."""
        for request in self.job.withdraw():
            worker_state.task_ready(request)

    def ids_told(self, name: str) -> list[str]:
        return [told[1] for told in self.told if told[0] == name]

    @property
    def said(self) -> list[list[str]]:
        return [[what for what, _ in message.channel.said] for message in self.messages]


IDS = ["id-0", "id-1", "id-2"]
OK = (False, [(False, "None")] * 3, 0.5)


def einfo_of(exc: BaseException) -> ExceptionInfo:
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()


def boom() -> ExceptionInfo:
    return einfo_of(KeyError("boom"))


class TerminatingPool:
    """Ends what it is told to: a process a little later, a greenlet at once."""

    def __init__(self, at_once: Any = None) -> None:
        self.terminated: list[Any] = []
        self.at_once = at_once

    def terminate_job(self, pid: int, signal: Any) -> None:
        self.terminated.append(pid)
        if self.at_once is not None:
            self.at_once()
