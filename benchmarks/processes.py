"""What Linux knows of other processes: CPU time, memory, children. Needs /proc."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

__all__ = (
    "children_of",
    "cpu_of",
    "peak_memory_of",
    "resident_memory_of",
    "server_at",
    "unique_memory_of",
    "wait_until_quiet",
)

#: How `/proc/net/tcp` writes that of a socket (`TCP_LISTEN` in linux/net/tcp_states.h).
LISTENING = "0A"


def cpu_of(pid: int) -> float:
    """Seconds of CPU time that a process has used (Linux makes a clock's number so)."""
    return time.clock_gettime((~pid << 3) | 2)


def children_of(pid: int) -> list[int]:
    """The processes that one has started and that are still there."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def peak_memory_of(pid: int) -> int:
    """The most memory that a process ever had resident, in bytes."""
    return _field(pid, "status", "VmHWM")


def resident_memory_of(pid: int) -> int:
    """The memory that a process has resident (RSS), in bytes."""
    return _field(pid, "status", "VmRSS")


def unique_memory_of(pid: int) -> int:
    """The memory that would be free if just this process ended (USS), in bytes."""
    return _field(pid, "smaps_rollup", "Private_Clean") + _field(
        pid, "smaps_rollup", "Private_Dirty"
    )


def server_at(port: int) -> int | None:
    """The process of this machine that listens at a TCP port; None if nobody may know."""
    sockets = set()
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(file).read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{inode}]")
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(path.readlink()) in sockets:
                return int(path.parts[2])
    return None


def wait_until_quiet(
    pids: Collection[int], *, still: float = 0.1, step: float = 0.005, noise: float = 0.0005
) -> float:
    """Wait until processes do no more work; return when they did the last, as `time.monotonic`.

    Arguments:
        pids: The processes.
        still: For how many seconds they must have done nothing.
        step: Seconds between two looks: as exact as the answer is.
        noise: Seconds of CPU time in `still` that are nothing: a timer that looks around.
    """
    worked, used = time.monotonic(), sum(map(cpu_of, pids))
    while (now := time.monotonic()) - worked < still:
        time.sleep(step)
        if (using := sum(map(cpu_of, pids))) - used > noise:
            worked, used = now, using
    return worked


def _field(pid: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/{pid}/{file} has no {name}")
