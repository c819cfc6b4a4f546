"""The memory that outlives a process of the pool."""

from __future__ import annotations

import logging
import os
import signal
from mmap import mmap
from typing import Any

import pytest

from celery_batches import shared_memory
from celery_batches.core.end_record import End
from celery_batches.shared_memory import open_memory, record_at


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_memory", None)


def test_a_note_of_a_killed_process_is_there() -> None:
    open_memory()
    mine = record_at(64, 3)
    assert mine is not None
    pid = os.fork()
    if pid == 0:
        theirs = record_at(64, 3)
        if theirs is not None:
            theirs.begin()
            theirs.note(1, End.DONE)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert mine.ends() == [None, End.DONE, None]


def test_a_second_call_keeps_the_memory() -> None:
    open_memory()
    first = shared_memory.shared_memory()
    open_memory()
    assert shared_memory.shared_memory() is first
    assert isinstance(first, mmap)


def test_a_process_that_was_not_forked_has_none() -> None:
    """It starts anew, and gets a number of which it can make nothing."""
    assert record_at(64, 3) is None


def test_a_batch_without_a_record_has_none() -> None:
    open_memory()
    assert record_at(None, 3) is None


def test_a_system_without_shared_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker says so once, and goes on without."""

    def refuse(*args: Any) -> None:
        raise OSError("not permitted")

    monkeypatch.setattr(shared_memory, "mmap", refuse)
    open_memory()
    assert shared_memory.shared_memory() is None
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "do without shared memory: not permitted" in line
