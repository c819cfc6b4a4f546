"""What is measured: a base case, and one thing at a time that is different from it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

__all__ = ("CASES", "PEERS", "SETS", "TARGETS", "Case", "Target", "select")

#: In the order in which they take turns.
PEERS = ("ours", "original", "plain", "kombu", "mixin")

#: Celery's own.
DEFAULT_MULTIPLIER = 4


@dataclass(frozen=True, slots=True)
class Case:
    """What workers are given to do, and how they are set up.

    Attributes:
        name: What it is selected by.
        kind: `throughput`: how fast is a full queue emptied? `waits`: how long does a message wait
            for its body at a rate that all peers can follow? `held`: how much memory does a
            message take that waits for its batch to fill?
        size: Bytes of arguments in a message.
        workers: How many work on the queue.
        concurrency: Processes, threads or greenlets of a worker.
        eta: Messages that wait in the worker for a time far off while the others are run.
        prefetch: How many messages a worker may hold. `window`: all are set to what this package
            comes to by itself with Celery's defaults; `default`: they are left to Celery's
            defaults; `unlimited`.
        rate: Messages a second, for `waits`.
        without: A shortcut of this package that is switched off.
    """

    name: str
    kind: Literal["throughput", "waits", "held"] = "throughput"
    broker: Literal["rabbitmq", "redis"] = "rabbitmq"
    acks_late: bool = True
    results: bool = False
    flush_every: int = 100
    flush_interval: float = 60.0
    pool: Literal["prefork", "threads", "gevent"] = "prefork"
    concurrency: int = 2
    size: int = 100
    messages: int = 20_000
    workers: int = 1
    eta: int = 0
    prefetch: Literal["window", "default", "unlimited"] = "window"
    rate: float = 0.0
    without: str = ""
    peers: tuple[str, ...] = ("ours", "original", "plain", "kombu")

    def prefetch_multiplier(self, peer: str) -> int:
        """Celery's `worker_prefetch_multiplier` for this peer; 0 is no limit."""
        if self.prefetch == "unlimited":
            return 0
        if self.prefetch == "default" or peer == "ours":
            return DEFAULT_MULTIPLIER
        # As many messages as batches may be on their way here, and one more that is filled.
        window = (DEFAULT_MULTIPLIER * self.concurrency + 1) * self.flush_every
        return -(-window // self.concurrency)


BATCHES = ("ours", "original")
CELERY = ("ours", "original", "plain")


def _around(base: Case) -> list[Case]:
    """The base case of a broker, and what is different from it in one thing."""

    def but(name: str, **different: Any) -> Case:
        return replace(base, name=f"{base.broker}-{name}", **different)

    return [
        replace(base, peers=PEERS),
        but("early", acks_late=False),
        but("results", results=True, peers=CELERY),
        but("flush-10", flush_every=10),
        but("flush-1000", flush_every=1000),
        but("threads", pool="threads", peers=CELERY),
        but("gevent", pool="gevent", concurrency=10, peers=CELERY),
        but("10kb", size=10_000, messages=10_000),
        # The batches of the original do not fill then: each would wait for `flush_interval`.
        but("defaults", prefetch="default", peers=("ours", "plain", "kombu")),
        but("waits", kind="waits", flush_every=10, rate=200.0, messages=4_000),
    ]


CASES: tuple[Case, ...] = (
    *_around(Case("rabbitmq-base")),
    *_around(Case("redis-base", broker="redis")),
    Case("held", kind="held", prefetch="unlimited", messages=10_000, peers=BATCHES),
    Case("scale-10k", messages=10_000),
    Case("scale-100k", messages=100_000),
    Case("scale-1m", messages=1_000_000),
    # At the end each worker has a batch that does not fill: it must not wait for long.
    Case("workers-1", messages=40_000, flush_interval=0.2),
    Case("workers-2", messages=40_000, flush_interval=0.2, workers=2),
    Case("workers-4", messages=80_000, flush_interval=0.2, workers=4),
    # Not every peer makes room for messages that wait for their time.
    Case("eta-0", prefetch="unlimited", peers=CELERY),
    Case("eta-10k", eta=10_000, prefetch="unlimited", peers=CELERY),
    Case("eta-50k", eta=50_000, prefetch="unlimited", peers=CELERY),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What one case has to show: that a figure is at least so many times that of a peer."""

    case: str
    peer: str
    at_least: float


TARGETS: tuple[Target, ...] = (
    Target("rabbitmq-base", "original", 1.0),
    Target("rabbitmq-early", "original", 1.0),
    Target("rabbitmq-base", "kombu", 0.9),
    Target("rabbitmq-base", "plain", 2.5),
    Target("redis-base", "original", 1.3),
    Target("rabbitmq-results", "original", 3.0),
    # The memory of the original, divided by ours.
    Target("held", "original", 1.0),
)

SETS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "must": tuple(dict.fromkeys(target.case for target in TARGETS)),
    "axes": ("rabbitmq-*", "redis-*", "held"),
    "scaling": ("scale-*", "workers-*", "eta-*"),
}


def select(patterns: Sequence[str], cases: Sequence[Case] = CASES) -> list[Case]:
    """The cases whose names match, in their own order; a pattern may be the name of a set.

    Raises:
        LookupError: If a pattern matches none.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        names = SETS.get(pattern, (pattern,))
        found = {case.name for case in cases for name in names if fnmatchcase(case.name, name)}
        if not found:
            raise LookupError(f"no case is called {pattern!r}")
        wanted |= found
    return [case for case in cases if case.name in wanted]
