"""Runs cases, several workers at a time, and says what became of their calls."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

from celery import states
from faults.crash_site import CrashSite

#: The most cases that one worker gets.
CHUNK = 30


@dataclass(slots=True)
class Fate:
    """What became of one call."""

    runs: int = 0
    state: str = states.PENDING
    #: How often its link, or the next task of its chain, has run.
    continued: int = 0
    #: How often its errback has run.
    failed: int = 0


@dataclass(slots=True)
class Result:
    """What became of one case."""

    case: object
    reached: bool = False
    #: Whether nothing moved at the end.
    still: bool = False
    fates: list[Fate] = field(default_factory=list)
    chord: str | None = None
    called_back: int = 0
    seconds: float = 0.0
    log: str = ""


def run_all(cases, urls, directory, *, at_once):
    """Run cases; return the result of each."""
    chunks, groups = [], {}
    for case in cases:
        groups.setdefault(case.config, []).append(case)
    for config, group in groups.items():
        for first in range(0, len(group), CHUNK):
            chunks.append((config, group[first : first + CHUNK]))
    with ThreadPoolExecutor(at_once) as threads:
        futures = [
            threads.submit(_run_chunk, config, chunk, urls, directory / str(number))
            for number, (config, chunk) in enumerate(chunks)
        ]
        return {result.case: result for future in futures for result in future.result()}


def _run_chunk(config, cases, urls, directory):
    site = CrashSite(config, urls, directory)
    try:
        numbers = count()
        return [_run_again_if_hung(site, case, numbers) for case in cases]
    finally:
        site.close()


def _run_again_if_hung(site, case, numbers):
    """Run a case; once more with another worker, if this one hangs.

    That can happen to any worker that loses its connection to Redis or is killed in between.
    """
    result = _run(site, case, next(numbers))
    if result.still and result.reached:
        return result
    site.replace()
    again = _run(site, case, next(numbers))
    again.seconds += result.seconds
    return again


def _run(site, case, number):
    started, lines = time.monotonic(), len(site.worker.log.items)
    result = Result(case)
    site.supervise()
    worker = site.worker
    connected = len(site.reports.of("connected"))
    site.order(case, number)
    calls, callback = site.send(case, number)

    def is_over():
        if case.way == "broker cut" and len(site.reports.of("connected")) == connected:
            return False
        return any(report["case"] == number for report in site.reports.of("lost"))

    result.still = site.settle(is_over)
    result.reached = not site.take_back()
    result.fates = [fate_of(site, name, call) for name, call in calls.items()]
    if callback is not None:
        result.chord = callback.state
        result.called_back = _told(site, "called back", str(number))
    if case.way == "backend away":
        site.heal()
    result.seconds = time.monotonic() - started
    same = worker is site.worker
    result.log = "\n".join([*worker.log.items[lines:], *([] if same else site.worker.log.items)])
    return result


def fate_of(site, name, call):
    """Return what became of a call."""
    return Fate(
        runs=sum(name in report["numbers"] for report in site.reports.of("run")),
        state=call.state,
        continued=_told(site, "continued", name),
        failed=_told(site, "failed", name),
    )


def _told(site, event, name):
    """Return how often a task was published that says so, and has run."""
    again = [report["again"] for report in site.reports.of(event) if report["number"] == name]
    return max(again.count(False), bool(again))
