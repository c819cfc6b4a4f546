"""A batch task and an ordinary one; one of their calls ends its process or never returns."""

import os
import signal
from pathlib import Path

from celery import Celery
from kombu import Exchange, Queue
from reporting import hang, report

from celery_batches import Batches

app = Celery("poison")
app.config_from_object("celeryconfig")
if app.conf.get("queue_arguments"):
    name = app.conf.task_default_queue
    app.conf.task_queues = [
        Queue(name, Exchange(name), routing_key=name, queue_arguments=app.conf.queue_arguments)
    ]

CALLS = 10
POISON = 4

#: If it is there, the poison is harmless.
CURED = Path("cured")

TENS = {"base": Batches, "flush_every": CALLS, "flush_interval": 1, "acks_late": True}
LOST = {"acks_late": True, "reject_on_worker_lost": True}
#: The newer option; Celery versions that know nothing of it have the older.
REQUEUED = {"acks_late": True, "acks_on_failure_or_timeout": False, "acks_on_timeout": False}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def run(requests, harm):
    numbers = [request.args[0] for request in requests]
    report("run", ids=[request.id for request in requests], numbers=numbers)
    if POISON in numbers and not CURED.exists():
        harm()
    for request in requests:
        app.backend.mark_as_done(request.id, request.args[0], request=request)
    report("done", numbers=numbers)


@app.task(name="batch_kills", **{**TENS, **LOST})
def batch_kills(requests):
    run(requests, kill)


@app.task(name="batch_hangs", time_limit=1, **{**TENS, **REQUEUED})
def batch_hangs(requests):
    run(requests, hang)


def run_alone(task, number, harm):
    report("run", ids=[task.request.id], numbers=[number])
    if number == POISON and not CURED.exists():
        harm()
    report("done", numbers=[number])
    return number


@app.task(name="plain_kills", bind=True, **LOST)
def plain_kills(self, number):
    return run_alone(self, number, kill)


@app.task(name="plain_hangs", bind=True, time_limit=1, **REQUEUED)
def plain_hangs(self, number):
    return run_alone(self, number, hang)
