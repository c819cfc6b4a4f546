"""Batch tasks and an ordinary one that wait while the test holds a lock."""

import fcntl

from celery import Celery
from reporting import report

from celery_batches import Batches

app = Celery("prefetch")
app.config_from_object("celeryconfig")


def wait_for_lock():
    with open("lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def work(requests):
    report("started", size=len(requests))
    wait_for_lock()
    return len(requests)


OPTIONS = {"base": Batches, "flush_every": 100, "flush_interval": 600}
early = app.task(name="early", **OPTIONS)(work)
late = app.task(name="late", acks_late=True, **OPTIONS)(work)
big = app.task(name="big", **{**OPTIONS, "flush_every": 1000})(work)
short = app.task(name="short", **{**OPTIONS, "flush_interval": 0.5})(work)


@app.task(name="ordinary", acks_late=True)
def ordinary(number):
    report("ordinary")
    wait_for_lock()
