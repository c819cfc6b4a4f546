"""Ends a process of the pool and waits until it has ended. Runs in the worker's main process."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from time import monotonic, sleep

from billiard import active_children

__all__ = ("TERM_SECONDS", "end_process", "wait_for_exit")

#: How long billiard waits after SIGTERM before it sends SIGKILL, in seconds.
TERM_SECONDS = 0.1
#: How long a killed process may take to end, in seconds.
KILL_SECONDS = 1.0
INTERVAL = 0.002


def end_process(pid: int) -> None:
    """End a process of the pool as billiard does for a hard time limit: SIGTERM, then SIGKILL.

    Nothing is done if the pool has no such process, as with threads and greenlets.
    """
    if not _is_child(pid):
        return
    _send(pid, signal.SIGTERM)
    if not wait_for_exit(pid, TERM_SECONDS):
        _send(pid, signal.SIGKILL)
        wait_for_exit(pid, KILL_SECONDS)


def wait_for_exit(pid: int, seconds: float) -> bool:
    """Wait until a process of the pool has ended, and return whether it has.

    Its status is left to the pool, which still signals this pid. It must not become that of another
    process.
    """
    if not _is_child(pid):
        return True
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13.
        sleep(seconds)
        return False
    deadline = monotonic() + seconds
    while not _has_exited(pid):
        if monotonic() >= deadline:
            return False
        sleep(INTERVAL)
    return True


def _is_child(pid: int) -> bool:
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
