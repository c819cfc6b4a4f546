"""What a measured worker writes down, in its own directory: runs in the environment of every peer.

It needs nothing but the standard library, and costs one write for each call of the body.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime, process_time
from typing import Any

from records import BODY, WAIT

SETTINGS: dict[str, Any] = json.loads(Path("settings.json").read_text())

# Many processes and threads append to one file: single small writes do not mix.
_MODE = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_bodies = os.open("bodies", _MODE)
_waits = os.open("waits", _MODE)


def clock() -> float:
    """Seconds of the clock that all processes of the machine share."""
    return clock_gettime(CLOCK_MONOTONIC)


def record_body(size: int, ended: float | None = None) -> None:
    os.write(_bodies, BODY.pack(clock() if ended is None else ended, size))


def record_waits(sent: list[float]) -> None:
    """Say when messages were sent of which the body has just begun."""
    now = clock()
    os.write(_waits, b"".join(WAIT.pack(now - moment) for moment in sent))


def note_ready() -> None:
    _note("ready", {"at": clock()})


def note_first() -> None:
    """The first message is here: from now on the time and the work of this worker count."""
    children = {pid: cpu_of(pid) for pid in _children()}
    _note("first", {"at": clock(), "main_cpu": process_time(), "children_cpu": children})


def cpu_of(pid: int) -> float:
    """Seconds of CPU time that a process has used (Linux makes a clock's number so)."""
    return clock_gettime((~pid << 3) | 2)


def _children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for path in lists for pid in path.read_text().split()]


def _note(what: str, facts: dict[str, Any]) -> None:
    pid = os.getpid()
    draft = Path(f"draft-{pid}")
    draft.write_text(json.dumps({"pid": pid, **facts}))
    draft.rename(f"{what}-{pid}.json")  # So that whoever reads it finds all of it.


def watch(signals: Any) -> None:
    """Have Celery's signals tell us when the worker is ready, and of its first message."""

    def on_ready(**_: Any) -> None:
        note_ready()

    def on_received(request: Any, **_: Any) -> None:
        if request.eta is None:  # Those with an ETA are there to be in the way.
            signals.task_received.disconnect(on_received)
            note_first()

    signals.worker_ready.connect(on_ready, weak=False)
    signals.task_received.connect(on_received, weak=False)
