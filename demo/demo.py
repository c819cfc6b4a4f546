"""See it work: `make demo`, or `BROKER=redis://… make demo` for a broker of your own.

A real `celery worker` process counts clicks in SQLite, first with a batch task, then with an
ordinary one. All figures are measured in this run: the worker's log has the batches, the database
has the counts. DEMO_CLICKS says how many clicks there are (1000).
"""

import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

HERE = Path(__file__).resolve().parent
URLS = ["/", "/news", "/shop", "/about", "/blog", "/jobs", "/help", "/terms"]
PATIENCE = 60.0  # Seconds without an end in sight after which something must be wrong.

BATCH = re.compile(
    r"Batch clicks\.count_clicks\[.+?\] of (\d+) requests, flushed by (\w+), succeeded in (\S+)s:"
)
TASK = re.compile(r"Task clicks\.count_click\[.+?\] succeeded in (\S+)s:")
READY = re.compile(r" ready\.$", re.MULTILINE)


class Failed(Exception):
    """The demo did not show what it should."""


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; the worker has to live, and not take for ever."""
        deadline = monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                raise Failed(f"The worker ended ({self.process.returncode}) before {what}.")
            if monotonic() > deadline:
                raise Failed(f"After {PATIENCE:.0f} seconds still waiting until {what}.")
            sleep(0.02)


@contextmanager
def running_worker(directory: Path) -> Iterator[Worker]:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "celery", "-A", "clicks", "worker", "-c", "2", "-l", "INFO"]
    # The talk of workers among each other: there is only one.
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with open(directory / "worker.log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            # The filesystem broker puts what it reads into the directory for temporary files.
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: we stop the worker, in order.
        )
    worker = Worker(process, directory / "worker.log")
    try:
        yield worker
    except Exception:
        print(f"\nThe worker's log:\n{worker.log()}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Progress:
    """One line that is updated, on a terminal; elsewhere a line for each quarter of the way."""

    def __init__(self, title: str, total: int, done: Callable[[], int]) -> None:
        self.title, self.total, self.done = title, total, done
        self.sent, self.shown_at, self.quarter = 0, 0.0, 0

    def finished(self) -> bool:
        """Show how far it is, at most ten times a second; return whether that is all the way."""
        if monotonic() < self.shown_at + 0.1:
            return False
        self.shown_at = monotonic()
        done = self.done()
        text = f"  {self.title:<15} sent {self.sent:>5}   counted in SQLite {done:>5}"
        if sys.stdout.isatty():
            print(f"\r{text}  {'#' * (30 * done // self.total):.<30}", end="", flush=True)
        elif 4 * done // self.total > self.quarter:
            self.quarter = 4 * done // self.total
            print(text, flush=True)
        return done >= self.total


@dataclass
class Result:
    seconds: float
    counts: Counter[str]


def run(title: str, job: str, task: Any, clicks: list[str], worker: Worker) -> Result:
    """Call the task for each click and wait until the database has them all."""
    import clicks as app

    progress = Progress(title, len(clicks), lambda: app.saved(job).total())
    started = monotonic()
    for url in clicks:
        task.delay(url)
        progress.sent += 1
        progress.finished()
    worker.wait(f"all clicks are counted by the {title}", progress.finished)
    seconds = monotonic() - started
    if sys.stdout.isatty():
        print()
    return Result(seconds, app.saved(job))


def log_is_complete(log: str, total: int) -> bool:
    """Whether the log, whose lines come after the transactions, has told of all calls."""
    in_batches = sum(int(size) for size, _, _ in BATCH.findall(log))
    return in_batches >= total and len(TASK.findall(log)) >= total


def report(clicks: list[str], batch: Result, ordinary: Result, log: str) -> None:
    batches = [(int(size), trigger, float(time)) for size, trigger, time in BATCH.findall(log)]
    tasks = [float(time) for time in TASK.findall(log)]
    print(f"\nCalls sent    {len(clicks)}\nBatches run   {len(batches)}")
    for (size, trigger), times in sorted(Counter(b[:2] for b in batches).items(), reverse=True):
        print(f"              {times} of {size} requests, flushed by {trigger}")

    print("\nTop counts")
    for url, count in batch.counts.most_common(5):
        print(f"  {url:<12}{count:>5}")
    sent = Counter(clicks)
    for name, counts in (("batch task", batch.counts), ("ordinary task", ordinary.counts)):
        if counts != sent:
            raise Failed(f"The {name} counted {dict(counts)}, but sent was {dict(sent)}.")
    print(f"  All {len(sent)} counts equal what was sent, in both ways.")

    in_batches, in_tasks = sum(b[2] for b in batches), sum(tasks)
    ratios = [len(tasks) / len(batches), ordinary.seconds / batch.seconds, in_tasks / in_batches]
    print(f"\nThe same {len(clicks)} calls   batch task   ordinary task    ratio")
    for name, ours, theirs, unit, ratio in (
        ("transactions", len(batches), len(tasks), "  ", ratios[0]),
        ("from first call to last count", batch.seconds, ordinary.seconds, " s", ratios[1]),
        ("in the body, with lock waits", in_batches, in_tasks, " s", ratios[2]),
    ):
        digits = 0 if unit == "  " else 2
        print(f"  {name:<30}{ours:>9.{digits}f}{unit}{theirs:>12.{digits}f}{unit}{ratio:>8.1f}x")


def reachable_broker(app: Any) -> str:
    """Return the broker's URL, without the password, if it answers there."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            return connection.as_uri()
    except Exception as error:
        raise Failed(f"There is no broker at BROKER: {error}") from error


def clean_up_broker(app: Any) -> None:
    with app.connection_for_write() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        queue.declare()  # Redis: the connection that deletes has to know what is bound to what.
        queue.delete()
        queue.exchange.delete()


def demo(directory: Path, total: int) -> None:
    os.environ["DEMO_DIRECTORY"] = str(directory)
    os.environ["DEMO_QUEUE"] = directory.name
    import clicks as app

    app.create_files()
    clicks = random.Random(1).choices(URLS, [1 / n for n in range(1, len(URLS) + 1)], k=total)
    embedded = app.BROKER.startswith("filesystem:")
    broker = "files in a directory" if embedded else reachable_broker(app.app)
    print(f"Starting a Celery worker with 2 processes; broker: {broker}", flush=True)
    try:
        with running_worker(directory) as worker:
            worker.wait("it was ready", lambda: bool(READY.search(worker.log())))
            batch = run("batch task", "batch", app.count_clicks, clicks, worker)
            ordinary = run("ordinary task", "ordinary", app.count_click, clicks, worker)
            worker.wait("the log is complete", lambda: log_is_complete(worker.log(), total))
            report(clicks, batch, ordinary, worker.log())
            print("\nStopping the worker.", flush=True)
    finally:
        if not embedded:
            clean_up_broker(app.app)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    started = monotonic()
    try:
        with TemporaryDirectory(prefix="celery-batches-demo-") as directory:
            demo(Path(directory).resolve(), int(os.environ.get("DEMO_CLICKS") or 1000))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except Failed as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    print(f"Done in {monotonic() - started:.0f} seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
