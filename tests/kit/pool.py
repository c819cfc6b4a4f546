"""The pool: what it was given, and what it tells of that when a test says so."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from billiard.einfo import ExceptionInfo


class Starts(Enum):
    """When the pool starts a call."""

    #: When a test says so. Until then it waits, as where all processes are busy.
    WHEN_TOLD = auto()
    #: At once. It ends when a test says so, as in a pool of processes or threads.
    AT_ONCE = auto()
    #: At once, and it ends before the worker goes on, as in the solo pool.
    AND_ENDS = auto()


class Handle:
    """Stands in for what a pool returns for a call; a weak reference can point to it."""

    def __init__(self) -> None:
        #: The signals that it was told to send.
        self.told: list[int] = []

    def terminate(self, signum: int) -> None:
        self.told.append(signum)


class Call:
    """What the pool was given to run, and whom it tells of that.

    Attributes:
        options: All that the worker gave to ``apply_async`` by name, ``args`` among it.
    """

    def __init__(
        self, target: Callable[..., Any], options: dict[str, Any], *, pickles: bool = False
    ) -> None:
        self.target = target
        self.options = options
        self.started = False
        args = options["args"]
        # As celery.concurrency.asynpool, under which there are a few more levels of tuples.
        task: tuple[Any, ...] = (2, (1, None, target, args, {}))
        self._pickled = pickle.dumps(task, protocol=4) if pickles else None

    @property
    def id(self) -> str:
        """The id of the batch."""
        found: str = self.options["correlation_id"]
        return found

    @property
    def args(self) -> tuple[Any, ...]:
        """What the target is called with: with processes, a copy each time."""
        if self._pickled is None:
            given: tuple[Any, ...] = self.options["args"]
            return given
        _, (_, _, _, copied, _) = pickle.loads(self._pickled)
        return tuple(copied)

    def start(self, pid: int = 7, at: float = 0.0) -> None:
        """Tell the worker that a process has it."""
        self.started = True
        self.options["accept_callback"](pid, at)

    def run(self) -> None:
        """Run it here, from its start to its end."""
        if not self.started:
            self.start()
        result = self.target(*self.args)
        self.end(result if self._pickled is None else pickle.loads(pickle.dumps(result)))

    def end(self, result: Any) -> None:
        """Tell the worker that it has returned that."""
        self.options["callback"](result)

    def fail(self, exc: BaseException) -> None:
        """Tell the worker that it has raised that, or that its process has ended by that."""
        self.options["error_callback"](einfo_of(exc))

    def time_out(self, seconds: float, *, soft: bool = False) -> None:
        """Tell the worker that a time limit is reached."""
        self.options["timeout_callback"](soft, seconds)


class Pool:
    """Stands in for the worker's pool of processes, threads or greenlets.

    Arguments:
        starts: When it starts what it is given.
        pickles: Whether what it is given goes to another process, as with billiard.
        handle: Whether it returns a handle: solo does not.
        kills: What it does when it is told to end what runs. A process ends a little later: nothing
            is done. A greenlet may end at once.
    """

    num_processes = 2
    is_green = False

    def __init__(
        self,
        *,
        starts: Starts = Starts.WHEN_TOLD,
        pickles: bool = False,
        handle: bool = True,
        kills: Callable[[], Any] | None = None,
    ) -> None:
        self.starts = starts
        self.pickles = pickles
        self.handle = Handle() if handle else None
        self.kills = kills
        #: The time limits of the worker's settings.
        self.options: dict[str, Any] = {}
        #: What it was given and has not ended.
        self.calls: list[Call] = []
        #: The process, and the signal that it was told to send there.
        self.terminated: list[tuple[int, Any]] = []

    def apply_async(
        self, target: Callable[..., Any], args: tuple[Any, ...] = (), **options: Any
    ) -> Handle | None:
        call = Call(target, {"args": args, **options}, pickles=self.pickles)
        self.calls.append(call)
        if self.starts is not Starts.WHEN_TOLD:
            call.start()
        if self.starts is Starts.AND_ENDS:
            self.run()
        return self.handle

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        self.terminated.append((pid, signal))
        if self.kills is not None:
            self.kills()

    def run(self) -> None:
        """Run the oldest call."""
        self.calls.pop(0).run()

    def fail(self, exc: BaseException) -> None:
        """Have the oldest call fail, or its process end."""
        self.calls.pop(0).fail(exc)


def einfo_of(exc: BaseException) -> ExceptionInfo:
    """What a pool tells of an exception."""
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()
