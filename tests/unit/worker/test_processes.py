"""A process is ended, and has ended, before anyone is told so; the pool still learns its status."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from billiard import Event, Process

from celery_batches.worker.processes import end_process, wait_for_exit


def wait_for_ever(ready: Any, ignores_term: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores_term else signal.SIG_DFL)
    ready.set()
    while True:
        signal.pause()


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[Any]:
    ready = Event()
    process = Process(target=wait_for_ever, args=(ready, request.param))
    process.start()
    assert ready.wait(30)
    yield process
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)


@pytest.mark.parametrize("process", [False], indirect=True)
def test_it_is_terminated(process: Any) -> None:
    end_process(process.pid)
    assert os.getpgid(process.pid)  # Its pid is not free for another process yet.
    process.join(30)
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("process", [True], indirect=True)
def test_it_is_killed_if_that_does_not_help(process: Any) -> None:
    wait_for_exit(process.pid, 0)
    assert process.is_alive()
    end_process(process.pid)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_only_processes_of_the_pool_are_ended() -> None:
    """A thread has the pid of the worker, and a greenlet none that is known."""
    end_process(os.getpid())
    end_process(os.getppid())
    end_process(2**40)
    wait_for_exit(2**40, 600)
