"""Ends a process of the pool and waits until it has ended. Runs in the worker's main process."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from time import monotonic, sleep

from billiard import active_children

__all__ = ("TERM_SECONDS", "end_process", "is_child", "wait_for_exit")

#: How long billiard waits after SIGTERM before it sends SIGKILL, in seconds.
TERM_SECONDS = 0.1
#: How long a killed process may take to end, in seconds.
KILL_SECONDS = 1.0
INTERVAL = 0.002


def end_process(pid: int) -> None:
    """End a process of the pool as billiard does for a hard time limit: SIGTERM, then SIGKILL.

    Nothing is done if the pool has no such process, as with threads and greenlets.
    """
    if not is_child(pid):
        return
    _send(pid, signal.SIGTERM)
    if not _has_exited_within(pid, TERM_SECONDS):
        _send(pid, signal.SIGKILL)
        _has_exited_within(pid, KILL_SECONDS)


def wait_for_exit(pid: int, seconds: float) -> None:
    """Wait until a process of the pool has ended, but not longer than so many seconds."""
    if is_child(pid):
        _has_exited_within(pid, seconds)


def _has_exited_within(pid: int, seconds: float) -> bool:
    """Wait for a child process. Its status is left to the pool.

    The pool still sends signals to this pid, which must not be that of another process by then.
    """
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13.
        sleep(seconds)
        return False
    deadline = monotonic() + seconds
    while not _has_exited(pid):
        if monotonic() >= deadline:
            return False
        sleep(INTERVAL)
    return True


def is_child(pid: int) -> bool:
    """Whether this is a process of the pool that has not ended."""
    return any(process.pid == pid for process in active_children())


def _has_exited(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _send(pid: int, signum: int) -> None:
    with suppress(OSError):
        if os.getpgid(pid) == pid:  # As billiard: the task may have started processes.
            os.killpg(pid, signum)
        else:
            os.kill(pid, signum)
