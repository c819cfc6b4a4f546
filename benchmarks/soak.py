"""Does a worker that runs for long leave something behind? `make soak`

    soak.py                             1,000,000 small and 100,000 large messages on RabbitMQ,
                                        and two backlogs of 50,000 that wait for their ETA
    soak.py --broker redis --acks early
    soak.py --quick                     few messages: to see that it works

All go through one worker with 50 batch tasks. Messages are sent while it works, and never so many
that the broker has to keep a lot. After each phase the worker must have as many timers, requests
and prefetched messages as before; in each, once it is warm, its memory must not grow by more than
--bound bytes for each message. An object that is kept for each would be 50 bytes at least.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from celery import Celery
from kombu.utils.uuid import uuid
from processes import children_of, resident_memory_of, unique_memory_of, wait_until_quiet
from sites import Failed, Site
from soak_options import parse
from verdicts import Checkpoint, Phase, checkpoints_table, phases_table, problems

SMALL, LARGE = 20, 2048
#: Messages sent between two looks at how far the worker is.
CHUNK = 200
#: Seconds between two samples of memory.
PERIOD = 1.0
NODE = f"soak-{uuid()}@bench"


class Soak:
    """One worker and what goes through it."""

    def __init__(self, site: Site, options: argparse.Namespace) -> None:
        self.site, self.options = site, options
        self.tasks: list[str] = site.settings["tasks"]
        self.sent = 0
        self.phases: list[Phase] = []
        self.checkpoints: list[Checkpoint] = []
        self._control = Celery("control", set_as_current=False)
        self._control.conf.update(site.config)

    def run(self) -> None:
        """Start the worker and do all phases.

        Raises:
            Failed: If a message is lost or run twice, or the worker ends.
        """
        options = self.options
        pool = ["-P", options.pool, "-c", str(options.concurrency)]
        self.pid = self.site.start(sys.executable, "soak_app", *pool, "-n", NODE).pid
        self.site.wait_for(lambda: self.site.notes("ready"), "the start of the worker")
        warm_up = Phase("warm-up", options.warm_up)
        self._phase(warm_up, lambda: self._send(options.warm_up, SMALL))
        self.phases.clear()
        self._phase(Phase("small", options.small), lambda: self._send(options.small, SMALL))
        self._phase(Phase("large", options.large), lambda: self._send(options.large, LARGE))
        for _ in range(2):
            later = Phase("ETA", options.eta, piles_up=True)
            self._phase(later, lambda: self._send_for_later(options.eta))
        self.site.stop()
        if self.site.done() != self.sent or self.site.publisher.messages_ready():
            raise Failed(f"{self.sent} messages were sent, and {self.site.done()} run")

    def _phase(self, phase: Phase, send: Callable[[], None]) -> None:
        self.phases.append(phase)
        self._before, self._sampled, started = self.site.done(), 0.0, time.monotonic()
        send()
        while self.site.done() < self.sent:
            self._look(patience=self.options.eta_delay + 60)
            time.sleep(0.05)
        phase.seconds = time.monotonic() - started
        self._checkpoint(phase.title)

    def _send(self, count: int, size: int) -> None:
        padding = "x" * size
        for start in range(0, count, CHUNK):
            numbers = range(start, min(start + CHUNK, count))
            self.site.publisher.send_each(numbers, self.tasks, padding)
            self.sent += len(numbers)
            self._look()
            while self.sent - self.site.done() > self.options.depth:
                self._look()
                time.sleep(0.01)

    def _send_for_later(self, count: int) -> None:
        after, share = self.options.eta_delay, -(-count // len(self.tasks))
        for task in self.tasks:
            part = min(share, count)
            count -= part
            self.site.publisher.send(part, task, "x" * SMALL, after=after, spread=10)
            self.sent += part
            self._look()
        while self.site.publisher.messages_ready():
            self._look(patience=self.options.eta_delay)
            time.sleep(0.1)
        self._note("ETA, waiting", self._state(), idle=False)

    def _look(self, *, patience: float = 60) -> None:
        """Take a sample when it is time, and see that something goes on."""
        now = time.monotonic()
        if now - self._sampled < PERIOD:
            return
        self.site.check()
        done, phase = self.site.done(), self.phases[-1]
        if not phase.samples or done - self._before != phase.samples[-1][0]:
            self._progress = now
        if now - self._progress > patience:
            raise Failed(f"{done} of {self.sent} messages are run, and it does not go on")
        self._sampled = now
        phase.samples.append((done - self._before, resident_memory_of(self.pid)))

    def _checkpoint(self, title: str) -> None:
        """Wait until the worker is idle, and note what it has then."""
        warm = self.checkpoints[0].state if self.checkpoints else {}
        wait_until_quiet([self.pid, *children_of(self.pid)], still=0.5)
        deadline = time.monotonic() + 10
        state = self._state()
        # A timer that is not needed any more goes when its time has come.
        while any(state[name] > warm.get(name, 1000) for name in state):
            if time.monotonic() > deadline:
                break  # It is a problem, which the tables will show.
            time.sleep(0.5)
            state = self._state()
        self._note(f"after {title}", state, idle=True)

    def _note(self, title: str, state: dict[str, int], *, idle: bool) -> None:
        resident, unique = resident_memory_of(self.pid), unique_memory_of(self.pid)
        self.checkpoints.append(Checkpoint(title, idle, resident, unique, state))
        print(checkpoints_table(self.checkpoints[-1:]), file=sys.stderr)

    def _state(self) -> dict[str, int]:
        ask = self._control.control.broadcast
        for _ in range(10):
            # Of this worker alone: others may be connected to the same broker.
            replies = ask("soak_state", destination=[NODE], reply=True, timeout=10, limit=1)
            if replies:
                found: dict[str, int] = next(iter(replies[0].values()))
                if "error" in found:
                    raise Failed(f"soak_state: {found['error']}")
                return found
        raise Failed("the worker does not answer")


def main(arguments: Sequence[str]) -> int:
    # So that what was started is ended, and its queue deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse(arguments, __doc__)
    settings: dict[str, Any] = {
        "acks_late": options.acks == "late",
        "flush_every": options.flush_every,
        "flush_interval": 1.0,
        "stamped": False,
        "tasks": [f"soak.task{number:02}" for number in range(options.tasks)],
    }
    with Site(options.broker, settings=settings) as site:
        soak = Soak(site, options)
        try:
            soak.run()
            found = problems(soak.phases, soak.checkpoints, bound=options.bound)
        except Failed as reason:
            found = [str(reason)]
    if soak.phases and soak.checkpoints:
        finished = [phase for phase in soak.phases if phase.seconds]
        print(f"{phases_table(finished)}\n\n{checkpoints_table(soak.checkpoints)}\n")
    if options.output:
        facts = {
            "phases": [asdict(phase) for phase in soak.phases],
            "checkpoints": [asdict(checkpoint) for checkpoint in soak.checkpoints],
            "problems": found,
        }
        options.output.write_text(json.dumps(facts, indent=1))
    print("\n".join(f"NOT FLAT: {problem}" for problem in found) or "Nothing is left behind.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
