"""Batch tasks that end the process in which they run."""

import os
import signal
import sys

from celery import Celery, signals
from reporting import report

from celery_batches import Batches

app = Celery("lost")
app.config_from_object("celeryconfig")

WAYS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "_exit": lambda: os._exit(3),
    "exit": lambda: sys.exit(3),
}


def end(way):
    with open("die"):  # A FIFO: it opens when the test opens its end, and keeps it open.
        WAYS[way]()


def settle(requests):
    for request in requests:
        app.backend.mark_as_done(request.id, request.args[0], request=request)


def die(requests):
    report("die", ids=[request.id for request in requests])
    requests[-1].mark_as_done("noted")  # That goes with the process.
    end(requests[0].args[0])


def die_once(requests):
    """End the process unless all have been there before."""
    again = all(request.redelivered or request.retries for request in requests)
    report("run", ids=[request.id for request in requests], again=again)
    if not again:
        end(requests[0].args[0])
    settle(requests)


def mark_and_die(requests):
    """Mark one request, and end the process unless that one is all there is."""
    report("mark", ids=[request.id for request in requests])
    settle(requests[:1])
    if len(requests) > 1:
        end(requests[0].args[0])


TRIPLES = {"base": Batches, "flush_every": 3, "flush_interval": 600}
LATE = {"acks_late": True, "reject_on_worker_lost": True}

lost = app.task(name="lost", **TRIPLES)(die)
redelivered = app.task(name="redelivered", **TRIPLES, **LATE)(die_once)
retried = app.task(name="retried", retry_on_worker_lost=True, default_retry_delay=0, **TRIPLES)(
    die_once
)
marked = app.task(name="marked", **TRIPLES)(mark_and_die)


@app.task
def plain(way):
    report("plain")
    end(way)


@app.task(base=Batches, flush_every=2, flush_interval=600)
def gated(requests):
    report("gated")
    with open("go") as gate:  # A FIFO: it opens when the test opens its end.
        gate.read()
    settle(requests)


@app.task
def last():
    report("last")


@app.task
def link(result, task_id):
    report("link", id=task_id)


@app.task
def errback(task_id):
    report("errback", id=task_id)


@signals.task_failure.connect
def on_failure(sender, task_id, exception, **kwargs):
    report("task_failure", id=task_id, exception=type(exception).__name__)
