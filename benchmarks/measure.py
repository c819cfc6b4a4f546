"""One measurement of one case for one peer.

How the peers are compared, and why:

* **The queue is full before the worker starts**, so that nobody waits for a publisher, which costs
  more CPU time than some of the peers do.
* **Time runs from the first message in the worker's main process** (noted by the worker itself at
  its first `task_received`) **until all processes of the worker are quiet** after the body has had
  the last message. So it is without start-up, and with everything that a peer puts off: results
  written after the body, and the acknowledgements of the last batch. To take the time from body to
  body would give batches the receipt of their first batch as a present.
* **With several workers the clock starts when the last of them has its first message**; what was
  run before is not counted.
* **All may hold the same number of messages**, and log at level WARNING only: both are kind to
  plain Celery tasks, which log two lines for each message at INFO.
* **CPU time** is that of the main process and that of its children, from the same first message on,
  divided by all messages. With threads and gevent the body is in the main process. That of the
  broker, where it is on this machine, is from the start of the worker on.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cases import Case
from environments import ENVIRONMENTS, find
from processes import (
    children_of,
    cpu_of,
    peak_memory_of,
    server_at,
    unique_memory_of,
    wait_until_quiet,
)
from sites import Failed, Site
from summary import percentile, rate_after, sizes

from celery_batches.core.shortcuts import SHORTCUTS

__all__ = ("Run", "measure")

TASK = "bench.task"
#: Of the messages sent steadily, those that are not looked at: the first ones find a cold worker.
WARM_UP = 0.1


@dataclass(slots=True)
class Run:
    """What came of one measurement.

    Attributes:
        figures: By name: `rate` (messages a second), `main_cpu`, `child_cpu` and `broker_cpu`
            (seconds for one message), `main_memory` and `child_memory` (peaks in bytes, children
            added up), `p50` and `p99` (seconds from sending to body), `held` (bytes for one
            buffered message).
        sizes: How many batches had which size.
        failure: Why there are no figures.
    """

    case: str
    peer: str
    repeat: int
    figures: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    failure: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(case: Case, peer: str, repeat: int, *, limit: float) -> Run:
    """Measure one case for one peer; a measurement that fails is told, not raised.

    Arguments:
        case: What to do.
        peer: By whom.
        repeat: How often that was done before.
        limit: Seconds that it may take.
    """
    run = Run(case.name, peer, repeat)
    kinds = {"throughput": _throughput, "waits": _waits, "held": _held}
    try:
        with _site(case, peer) as site:
            kinds[case.kind](site, case, run, limit)
    except Failed as reason:
        run.figures.clear()
        run.failure = str(reason)
    return run


def _throughput(site: Site, case: Case, run: Run, limit: float) -> None:
    if case.eta:
        site.publisher.send(case.eta, TASK, _padding(case), after=24 * 3600)
    site.publisher.send(case.messages, TASK, _padding(case))
    broker = server_at(urlsplit(site.url).port or 0)
    before = 0.0 if broker is None else cpu_of(broker)
    for _ in range(case.workers):
        _start(site, case, run.peer)
    site.wait_until_done(case.messages, limit=limit)
    pids = _all_processes(site)
    ended = wait_until_quiet(pids)
    firsts = site.notes("first")
    if len(firsts) < case.workers:
        raise Failed(f"{len(firsts)} of {case.workers} workers had a message: send more of them")
    started = max(first["at"] for first in firsts)
    run.figures["rate"] = rate_after(site.bodies, started, ended)
    run.figures.update(_work(site, firsts, case.messages))
    if broker is not None:
        run.figures["broker_cpu"] = (cpu_of(broker) - before) / case.messages
    run.sizes = _sizes(site, run.peer)
    _check(site, case, run.peer)


def _waits(site: Site, case: Case, run: Run, limit: float) -> None:
    _start(site, case, run.peer)
    site.wait_for(lambda: site.notes("ready"), "the start of the worker")
    site.publisher.send_steadily(case.messages, TASK, _padding(case), case.rate)
    site.wait_until_done(case.messages, limit=limit)
    wait_until_quiet(_all_processes(site))
    waits = site.waits()[int(case.messages * WARM_UP) :]
    run.figures.update(p50=percentile(waits, 50), p99=percentile(waits, 99))
    run.figures.update(_work(site, site.notes("first"), case.messages))
    run.sizes = _sizes(site, run.peer)
    _check(site, case, run.peer)


def _held(site: Site, case: Case, run: Run, limit: float) -> None:
    """Fill a buffer that is never full, twice: the second time all else is there already."""
    worker = _start(site, case, run.peer)
    site.wait_for(lambda: site.notes("ready"), "the start of the worker")
    memory = []
    for _ in range(2):
        site.publisher.send(case.messages, TASK, _padding(case))
        site.wait_for(lambda: site.publisher.messages_ready() == 0, "receiving them")
        wait_until_quiet([worker.pid], still=1.0)
        memory.append(unique_memory_of(worker.pid))
    if site.done():
        raise Failed("the batch was flushed")
    run.figures["held"] = (memory[1] - memory[0]) / case.messages
    site.kill()  # The messages go where the queue goes.


def _site(case: Case, peer: str) -> Site:
    multiplier = case.prefetch_multiplier(peer)
    held = case.kind == "held"
    settings = {
        "acks_late": case.acks_late,
        "flush_every": 4 * case.messages if held else case.flush_every,
        "flush_interval": 3600.0 if held else case.flush_interval,
        "marks": ENVIRONMENTS[peer].marks,
        "prefetch_count": multiplier * case.concurrency,
        "results": case.results,
        "stamped": case.kind == "waits",
    }
    config: dict[str, Any] = {"worker_prefetch_multiplier": multiplier}
    if case.without:
        config["batches_shortcuts"] = sorted(SHORTCUTS - {case.without})
    if case.pool == "gevent":
        # With AMQP heartbeats Celery 5.7 waits 0.1 seconds for them before each message when the
        # pool is green (`_quick_drain` in celery/worker/loops.py): nothing else could be seen.
        config["broker_heartbeat"] = 0
    return Site(case.broker, results=case.results, settings=settings, config=config)


def _start(site: Site, case: Case, peer: str) -> Any:
    environment, python = ENVIRONMENTS[peer], find(peer)
    if not environment.is_worker:
        return site.start(python, environment.app)
    return site.start(python, environment.app, "-P", case.pool, "-c", str(case.concurrency))


def _work(site: Site, firsts: list[dict[str, Any]], messages: int) -> dict[str, float]:
    """The CPU time of all workers for a message, and their peaks of memory."""
    main = child = 0.0
    memory = {"main_memory": 0, "child_memory": 0}
    for first in firsts:
        pid, before = first["pid"], first["children_cpu"]
        children = children_of(pid)
        main += cpu_of(pid) - first["main_cpu"]
        child += sum(cpu_of(one) - before.get(str(one), 0.0) for one in children)
        memory["main_memory"] = max(memory["main_memory"], peak_memory_of(pid))
        total = sum(map(peak_memory_of, children))
        memory["child_memory"] = max(memory["child_memory"], total)
    return {"main_cpu": main / messages, "child_cpu": child / messages, **memory}


def _sizes(site: Site, peer: str) -> dict[str, int]:
    is_worker = ENVIRONMENTS[peer].is_worker
    return sizes(size for _, size in site.bodies) if is_worker else {}


def _all_processes(site: Site) -> list[int]:
    mains = [worker.pid for worker in site.workers]
    return [*mains, *(child for pid in mains for child in children_of(pid))]


def _check(site: Site, case: Case, peer: str) -> None:
    """Whoever has been fast has to have done it all, and nothing twice.

    Raises:
        Failed: If not.
    """
    if case.results and (kept := site.results_kept()) != case.messages:
        raise Failed(f"{kept} of {case.messages} results are kept")
    site.stop()
    if (done := site.done()) != case.messages:
        raise Failed(f"{done} messages were run, and {case.messages} sent")
    time.sleep(0.1)  # RabbitMQ counts what comes back from a worker a moment later.
    if (left := site.publisher.messages_ready()) != case.eta and not (
        case.eta and peer == "original"
    ):
        raise Failed(f"{left} messages are left in the queue, and not {case.eta}")


def _padding(case: Case) -> str:
    """What makes the arguments of a message as long as the case says."""
    return "x" * max(0, case.size - len('[0.0, ""]'))
