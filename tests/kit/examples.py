"""The examples of the documentation, and a worker in this process that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from kombu.transport import memory

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@contextmanager
def running_worker(app: Celery) -> Iterator[Queue[tuple[str, Any]]]:
    """Run a worker in this process; yield the queue in which the runs of bodies are reported.

    A report is the state of a batch and what its body returned or raised.
    """
    runs: Queue[tuple[str, Any]] = Queue()

    def report(state: str, retval: Any, **_: Any) -> None:
        runs.put((state, retval))

    signals.task_postrun.connect(report)
    try:
        with start_worker(app, pool="solo", perform_ping_check=False):
            try:
                yield runs
            finally:
                # A message wakes up the worker, which would go on waiting for some seconds.
                app.control.shutdown()
    finally:
        signals.task_postrun.disconnect(report)
        # If the worker was gone by then, that message still waits, and would end the next one: in
        # one process they all have the same name, and the same broker.
        memory.Channel.queues.clear()
