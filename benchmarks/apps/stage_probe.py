"""Times each stage of a message's way through a worker, without a broker and without a pool.

Runs in the environment of a peer: real messages from kombu's in-memory transport go into the
strategy of the task, and what it hands to the pool is pickled, run and completed here, as the pool
would do it. So nothing of the peer's own is called by name, and all of them are comparable.
"""

from __future__ import annotations

import gc
import json
import pickle
import sys
from collections.abc import Callable
from time import perf_counter
from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.app.trace import build_tracer, setup_worker_optimizations
from celery.bootsteps import RUN
from celery.worker import state as worker_state
from kombu import Exchange, Queue
from kombu.common import QoS
from vine import promise

TASK = "bench.task"


class Pool:
    """Keeps what it is given."""

    num_processes = 2

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.jobs: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def apply_async(self, target: Any, args: tuple[Any, ...] = (), **callbacks: Any) -> None:
        self.jobs.append((target, args, callbacks))


class Timer:
    """Never fires."""

    def call_at(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(cancel=lambda: None)

    call_after = call_repeatedly = call_at

    def cancel(self, entry: Any) -> None:
        pass


class Consumer:
    """What a strategy sees of the worker. Requests for the pool wait in `ready`."""

    hostname = "worker@bench"
    connection_errors = ()
    event_dispatcher = None
    disable_rate_limits = True

    def __init__(self, app: Any, connection: Any) -> None:
        self.app, self.connection = app, connection
        self.pool, self.timer = Pool(), Timer()
        self.qos = QoS(lambda prefetch_count: None, 8)
        self.task_buckets: dict[str, Any] = {TASK: None}
        self.blueprint = SimpleNamespace(state=RUN)
        self.controller = SimpleNamespace(state=worker_state)
        self.strategies: dict[str, Any] = {}
        self.ready: list[Any] = []
        self.on_task_request = self.ready.append
        self.apply_eta_task = self._limit_task = self._limit_post_eta = None


def make_app(peer: str, flush_every: int, backend: str | None, way: str) -> tuple[Any, Any]:
    """An app and its task; whether it is a batch task is said by `peer`.

    Arguments:
        backend: Where its results go; None if it has none.
        way: How the body of a batch task gives each request a result: not at all ("empty"), by a
            mark of each ("mark"), or by returning them ("return").
    """
    app = Celery("stages", broker="memory://", backend=backend or "cache+memory://")
    app.set_current()
    app.conf.result_expires = 60  # Nobody else removes them.

    def plain(sent: float, padding: str) -> str:
        return "ok"

    def empty(requests: list[Any]) -> None: ...

    def mark(requests: list[Any]) -> None:
        for request in requests:
            if peer == "ours":
                request.mark_as_done("ok")
            else:  # As the documentation of the original says.
                app.backend.mark_as_done(request.id, "ok", request=request)

    def returning(requests: list[Any]) -> list[str]:
        return ["ok" for _ in requests]

    # Not shared, or the next app has it too.
    options = {"name": TASK, "shared": False, "acks_late": True, "ignore_result": backend is None}
    if peer == "plain":
        task = app.task(**options)(plain)
    else:
        from celery_batches import Batches

        options.update(base=Batches, flush_every=flush_every, flush_interval=3600)
        if way == "return":
            options["return_results"] = True
        bodies: dict[str, Any] = {"empty": empty, "mark": mark, "return": returning}
        task = app.task(**options)(bodies[way])
    app.finalize()
    setup_worker_optimizations(app, "worker@bench")
    task = app.tasks[TASK]
    # As each process of the prefork pool does when it starts.
    task.__trace__ = build_tracer(TASK, task, app.loader, "worker@bench", app=app)
    return app, task


class Probe:
    """One batch's worth of messages at a time."""

    def __init__(self, peer: str, count: int, padding: str, backend: str | None, way: str) -> None:
        self.peer, self.count, self.padding = peer, count, padding
        self.app, self.task = make_app(peer, count, backend, way)
        self.connection = self.app.connection_for_read()
        self.queue = Queue("stages", Exchange("stages"), routing_key="stages")
        self.channel = self.connection.channel()
        self.bound = self.queue(self.channel)
        self.bound.declare()
        self.seconds: dict[str, float] = {}
        self.bytes = 0

    def run(self) -> dict[str, float]:
        """Let a batch go through all stages; return the seconds of each, for one message."""
        self.seconds = {}
        consumer = Consumer(self.app, self.connection)
        strategy = self.task.start_strategy(self.app, consumer)
        messages = self._messages()
        gc.collect()
        gc.disable()
        # The last message of a batch sets off more than the others.
        self._time("receive", lambda: self._receive(strategy, messages[:-1]))
        self._time("dispatch", lambda: self._dispatch(consumer, strategy, messages[-1:]))
        jobs = consumer.pool.jobs
        sent = self._time("pickle", lambda: [self._dump((job[0], job[1])) for job in jobs])
        loaded = self._time("unpickle", lambda: [pickle.loads(data) for data in sent])
        returned = self._time("run", lambda: [target(*args) for target, args in loaded])
        self._time("return", lambda: [pickle.loads(self._dump(one)) for one in returned])
        self._time("complete", lambda: self._complete(jobs, returned))
        gc.enable()
        self.bytes = sum(map(len, sent)) // self.count
        return {stage: seconds / self.count for stage, seconds in self.seconds.items()}

    def _messages(self) -> list[Any]:
        with self.connection.Producer() as producer:
            for _ in range(self.count):
                self.app.send_task(
                    TASK, (0.0, self.padding), producer=producer, queue=self.queue, retry=False
                )
        return [self.bound.get() for _ in range(self.count)]

    def _receive(self, strategy: Any, messages: list[Any]) -> None:
        """As `Consumer.create_task_handler` does."""
        for message in messages:
            ack = promise(self._soon, (message.ack_log_error,))
            reject = promise(self._soon, (message.reject_log_error,))
            strategy(message, None, ack, reject, ())

    def _soon(self, call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    def _dispatch(self, consumer: Consumer, strategy: Any, last: list[Any]) -> None:
        self._receive(strategy, last)
        for request in consumer.ready:
            request.execute_using_pool(consumer.pool)

    def _complete(self, jobs: list[Any], returned: list[Any]) -> None:
        for (_, _, callbacks), value in zip(jobs, returned, strict=True):
            callbacks["accept_callback"](1, 0.0)
            callbacks["callback"](value)

    def _dump(self, value: Any) -> bytes:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)

    def _time(self, stage: str, work: Callable[[], Any]) -> Any:
        started = perf_counter()
        value = work()
        self.seconds[stage] = perf_counter() - started
        return value


def main(
    peer: str, count: str, size: str, repeats: str, ways: str = "empty", backend: str = ""
) -> None:
    """Print the times of each way. Several, with commas between them, take turns."""
    names = ways.split(",")
    probes = [Probe(peer, int(count), "x" * int(size), backend or None, way) for way in names]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in names}
    for _ in range(1 + int(repeats)):
        for way, probe in zip(names, probes, strict=True):
            probe.app.set_current()
            runs[way].append(probe.run())
    # The first has imports, and fills caches.
    timed = {way: of_way[1:] for way, of_way in runs.items()}
    print(json.dumps({"runs": timed[names[0]], "ways": timed, "bytes": probes[0].bytes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
