"""Threads that run one at a time, and change places where a schedule says so.

Each actor is a thread. The one whose turn it is stops at *points*: at each line of the traced
functions (at each instruction of some), at each lock, and wherever it says so itself. There it is
decided who goes on. The same decisions make the same run, so they can be tried one by one.

Under a lock there are no points but in the functions where each instruction is one, unless they are
asked for: what others could do meanwhile they can do just as well before or after, as long as they
leave alone what the lock is for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, ModuleType
from typing import Any

#: More points than any test here has: something goes round in circles.
MAX_POINTS = 20_000


class Deadlock(AssertionError):
    """Somebody waits for what will never come."""


class _Abort(BaseException):
    """The run is over: raised in actors that have nothing more to do."""


class Actor:
    def __init__(self, name: str, fun: Callable[[], None], *, serves: bool) -> None:
        self.name = name
        self.fun = fun
        #: Whether it waits for work for as long as there are others.
        self.serves = serves
        self.turn = threading.Semaphore(0)
        self.alive = threading.Event()
        self.ready: Callable[[], bool] | None = None
        self.idle = False
        self.done = False
        self.locks = 0

    @property
    def is_ready(self) -> bool:
        return not self.done and (self.ready is None or self.ready())


class Stage:
    """Runs actors one at a time.

    Arguments:
        decisions: Who is to go on, at each point where there is a choice: an index of those who
            can, the one whose turn it is being the first. When there are no more of them, the first
            goes on for as long as it can.
        trace: The modules of which each line is a point.
        fine: The functions of which each instruction is one, also under a lock.
        coarse: Functions of which none is.
    """

    def __init__(
        self,
        decisions: Sequence[int] = (),
        *,
        trace: Iterable[ModuleType] = (),
        fine: Iterable[Callable[..., Any]] = (),
        coarse: Iterable[Callable[..., Any]] = (),
    ) -> None:
        self.decisions = decisions
        self.files = {module.__file__ for module in trace}
        self.fine: set[CodeType] = {fun.__code__ for fun in fine}
        self.coarse: set[CodeType] = {fun.__code__ for fun in coarse}
        #: Of each choice: how many could go on.
        self.choices: list[int] = []
        #: Called whenever another goes on, and a lock is released.
        self.check: Callable[[], None] = lambda: None
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.error: BaseException | None = None
        #: Whether there are points under a lock too.
        self.everywhere = False
        #: The functions that have points, if not all.
        self.only: set[CodeType] | None = None
        self._points = 0
        self._over = threading.Event()
        self._aborted = False

    def actor(self, fun: Callable[[], None], *, serves: bool = False) -> None:
        self.actors.append(Actor(fun.__name__, fun, serves=serves))

    def run(self) -> None:
        """Run all actors to their end, and those who serve until there is nothing left to do."""
        threads = [
            threading.Thread(target=self._live, args=(actor,), daemon=True) for actor in self.actors
        ]
        # One after the other: Python refuses to set the trace functions of two threads at once, and
        # coverage sets one when a thread starts.
        for actor, thread in zip(self.actors, threads, strict=True):
            thread.start()
            actor.alive.wait()
        self._pass_on()
        self._over.wait()
        self._aborted = True
        for actor, thread in zip(self.actors, threads, strict=True):
            actor.turn.release()
            thread.join()
        if self.error is not None:
            raise self.error

    def point(self, *, after_you: bool = False) -> None:
        """Perhaps let another go on; with `after_you`, so it is when nothing is decided."""
        if self._is_on_stage():
            self._pass_on(after_you=after_you)

    def fail_unless_sound(self) -> None:
        try:
            self.check()
        except AssertionError as exc:
            # Not to be caught by what is tested.
            self.error = exc
            self._over.set()
            raise _Abort from exc

    def wait_for(self, ready: Callable[[], bool], *, idle: bool = False) -> None:
        """Go on when that is true; `idle` if it need not ever be."""
        actor = self.current
        if not self._is_on_stage() or actor is None:
            assert ready(), "deadlock before the curtain rises"
            return
        actor.ready, actor.idle = ready, idle
        self._pass_on()
        actor.ready, actor.idle = None, False

    def _is_on_stage(self) -> bool:
        return self.current is not None and not self._over.is_set()

    def _live(self, actor: Actor) -> None:
        actor.alive.set()
        actor.turn.acquire()
        try:
            if not self._aborted:
                sys.settrace(self._trace)
                actor.fun()
        except _Abort:
            return
        except BaseException as exc:
            self.error = exc
            self._over.set()
            return
        finally:
            sys.settrace(None)
            actor.done = True
        if not self._aborted:
            self._pass_on()

    def _pass_on(self, *, after_you: bool = False) -> None:
        """Choose who goes on, and wait for one's next turn."""
        before = self.current
        able = [actor for actor in self.actors if actor.is_ready]
        if before in able:
            able.remove(before)
            able.insert(len(able) if after_you else 0, before)
        chosen = None
        if not able:
            self._end()
        else:
            self.current = chosen = self._choose(able)
            self._points += 1
            if self._points > MAX_POINTS:
                self.error = AssertionError("it goes round in circles")
                self._over.set()
        if self._over.is_set():
            if before is not None and not before.done:
                before.turn.acquire()
                raise _Abort
        elif chosen is not None and chosen is not before:
            if before is not None:
                self.fail_unless_sound()
            chosen.turn.release()
            if before is not None and not before.done:
                before.turn.acquire()
                if self._aborted:
                    raise _Abort

    def _choose(self, able: list[Actor]) -> Actor:
        if len(able) == 1:
            return able[0]
        step = len(self.choices)
        chosen = self.decisions[step] % len(able) if step < len(self.decisions) else 0
        self.choices.append(len(able))
        return able[chosen]

    def _end(self) -> None:
        stuck = [a.name for a in self.actors if not a.done and not (a.serves and a.idle)]
        if stuck:
            self.error = Deadlock(f"{stuck} wait for ever")
        self._over.set()

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        code = frame.f_code
        if self.only is not None:
            return self._step if code in self.only else None
        if code in self.fine:
            frame.f_trace_opcodes = True
            return self._fine_step
        return self._step if code.co_filename in self.files and code not in self.coarse else None

    def _step(self, frame: Any, event: str, arg: Any) -> Any:
        locked = self.current is not None and self.current.locks
        if event == "line" and (self.everywhere or not locked):
            self.point()
        return self._step

    def _fine_step(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            # Python 3.13 forgets what was asked for before there was a function to call.
            frame.f_trace_opcodes = True
        if event in ("line", "opcode"):
            self.point()
        return self._fine_step
