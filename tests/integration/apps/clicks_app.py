"""Batch tasks that return results, and an ordinary one."""

import time

from celery import Celery, signals
from reporting import report

from celery_batches import Batches

app = Celery("clicks")
app.config_from_object("celeryconfig")


def settle(requests):
    for request in requests:
        app.backend.mark_as_done(request.id, request.args[0] * 2, request=request)


@app.task(base=Batches, flush_every=10, flush_interval=0.5)
def double(requests):
    report("double", args=[request.args[0] for request in requests])
    settle(requests)
    return len(requests)


@app.task(
    base=Batches,
    flush_every=4,
    flush_interval=0.5,
    return_results=True,
    bisect_on_failure=ZeroDivisionError,
)
def inverse(requests):
    return [1 / request.args[0] for request in requests]


@app.task(base=Batches, flush_every=100, flush_interval=5, ignore_result=True)
def timed(requests):
    report("timed", now=time.time(), calls=[(r.args[0], r.eta) for r in requests])


@app.task(base=Batches, flush_every=10, flush_interval=600)
def patient(requests):
    report("patient", ids=[request.id for request in requests])
    settle(requests)


@app.task
def triple(number):
    return number * 3


@signals.task_received.connect
def on_received(request, **kwargs):
    if request.name == patient.name:
        report("received", id=request.id)
