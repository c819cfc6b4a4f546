"""Batch tasks and ordinary ones, early and late, of which every step of every message is reported.

The number of a message is the id of its task. Each time that a worker gets it is a delivery, with a
key of its own that goes with it into the pool.
"""

import os
import signal
from itertools import count
from pathlib import Path
from time import sleep

from celery import Celery, Task, bootsteps, signals
from celery.worker.request import Request
from reporting import report

from celery_batches import Batches

app = Celery("ledger")
app.config_from_object("celeryconfig")
counter = count(1)
#: Where the test leaves its orders.
DIRECTORY = Path(__file__).parent


class Connected(bootsteps.StartStopStep):
    """Reports each connection before its first message."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent):
        report("connected", worker=os.getpid())


app.steps["consumer"].add(Connected)


def key_of(request):
    return request.delivery_info["key"]


class ReportingRequest(Request):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.delivery_info["key"] = f"{os.getpid()}-{next(counter)}"

    def on_accepted(self, pid, time_accepted):
        report("accepted", key=key_of(self), pid=pid)
        super().on_accepted(pid, time_accepted)

    def acknowledge(self):
        if not self.acknowledged:
            report("ack", key=key_of(self))
        super().acknowledge()

    def reject(self, requeue=False):
        if not self.acknowledged and requeue:
            report("requeued", key=key_of(self))
        super().reject(requeue=requeue)


@signals.task_received.connect
def on_received(request, **kwargs):
    report(
        "received",
        worker=os.getpid(),
        key=key_of(request),
        number=request.id,
        redelivered=bool(request.delivery_info["redelivered"]),
    )


def take(name):
    """Take an order of the test to lose this process; each is for whoever comes first."""
    try:
        (DIRECTORY / name).unlink()
    except FileNotFoundError:
        return False
    return True


def die():
    report("killed", pids=[os.getpid()])
    os.kill(os.getpid(), signal.SIGKILL)


class Settling(Task):
    """Its process may be lost when the body has ended, and the worker does not know it yet."""

    abstract = True

    def on_success(self, retval, task_id, args, kwargs):
        if take("settling"):
            die()


class Reporting(Settling, Batches):
    abstract = True
    Request = ReportingRequest

    def flush(self, requests):
        report("flushed", worker=os.getpid(), keys=[key_of(request) for request in requests])
        return super().flush(requests)


class Plain(Settling):
    abstract = True
    Request = ReportingRequest


def work(keys, seconds, poison=()):
    """Run, as these keys; a call with poison ends its process as often as it was given files."""
    report("run", keys=keys)
    if any(map(take, poison)):
        die()
    sleep(seconds)  # It is there to be broken.
    report("ended", keys=keys)


def work_on_batch(requests):
    # As long as the one that wants it longest.
    seconds = max(request.args[0] for request in requests)
    poison = [name for request in requests for name in request.args[1:]]
    work([key_of(request) for request in requests], seconds, poison)


def work_on_one(self, seconds, *poison):
    work([key_of(self.request)], seconds / 10, poison)


LATE = {"acks_late": True, "reject_on_worker_lost": True}
#: The options of each task.
TASKS = {
    "early_small": {"flush_every": 3, "flush_interval": 1},
    "early_big": {"flush_every": 40, "flush_interval": 1.5},
    "late_small": {"flush_every": 3, "flush_interval": 1, **LATE},
    "late_big": {"flush_every": 40, "flush_interval": 1.5, **LATE},
    "plain_early": {},
    "plain_late": LATE,
}
for name, options in TASKS.items():
    if "flush_every" in options:
        app.task(name=name, base=Reporting, **options)(work_on_batch)
    else:
        app.task(name=name, base=Plain, bind=True, **options)(work_on_one)
