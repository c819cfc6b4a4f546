"""Batch tasks and ordinary ones that lose something at a step which the test names.

The number of a call says which case of the test it is of. How it ends is its second argument.
"""

import contextlib
import os
import socket

from celery import Celery, Task, bootsteps
from celery.worker import state
from celery.worker.request import Request
from crash_points import body, is_measured, reach
from reporting import report

from celery_batches import Batches

app = Celery("crash")
app.config_from_object("celeryconfig")


class Census(bootsteps.StartStopStep):
    """Tells the test how many requests this worker has, whenever its event loop comes round."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    listener = None

    def start(self, parent):
        report("connected", worker=os.getpid())
        if Census.listener is None:
            Census.listener = socket.socket(socket.AF_UNIX)
            Census.listener.bind(os.environ["CENSUS"])
            Census.listener.listen(10)
        # A new connection to the broker has a new event loop.
        parent.hub.add_reader(Census.listener, count, parent.timer)


def count(timer):
    entries = [waiting.entry for waiting in timer.schedule.queue]
    # Celery's retry, and what polls for the parts of a chord, wait for their ETA.
    scheduled = [e for e in entries if not e.canceled and isinstance((*e.args, 0)[0], Request)]
    requests = len(state.reserved_requests) + len(state.active_requests) + len(scheduled)
    with Census.listener.accept()[0] as caller, contextlib.suppress(OSError):
        caller.sendall(str(requests).encode())


app.steps["consumer"].add(Census)


class Handlers(Task):
    abstract = True

    def on_success(self, retval, task_id, args, kwargs):
        reach("on_success")

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        reach("on_failure")

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        reach("on_retry")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        reach("after_return")


class HandledBatches(Handlers, Batches):
    abstract = True


def run_batch(requests):
    with body([request.args[0] for request in requests]):
        for request in requests:
            number, how = request.args
            if how == "fail":
                request.mark_as_failure(ValueError(number))
            elif how == "retry" and not request.retries:
                request.retry(countdown=0)
            else:
                request.mark_as_done(number)


def run_plain(self, number, how):
    with body([number]):
        if how == "fail":
            error = ValueError(number)
        elif how == "retry" and not self.request.retries:
            error = None
        else:
            return number
    raise error or self.retry(countdown=0)


ACKS = {
    "early": {},
    "late": {"acks_late": True},
    "reject": {"acks_late": True, "reject_on_worker_lost": True},
}
for acks, options in ACKS.items():
    app.task(
        name=f"batch_{acks}", base=HandledBatches, flush_every=4, flush_interval=0.5, **options
    )(run_batch)
    app.task(name=f"plain_{acks}", base=Handlers, bind=True, **options)(run_plain)


def tell(event, task, number):
    # One that is delivered again, since its own acknowledgement was lost, was published once.
    report(event, number=number, again=bool(task.request.delivery_info["redelivered"]))


@app.task(name="link", bind=True, ignore_result=True)
def link(self, number):
    tell("continued", self, number)


@app.task(name="next", bind=True, ignore_result=True)
def following(self, number):
    tell("continued", self, number)


@app.task(name="callback", bind=True)
def callback(self, number):
    tell("called back", self, number)


@app.task(name="errback", bind=True, ignore_result=True)
def errback(self, number):
    tell("failed", self, number)


@app.task(name="errback_here", ignore_result=True)
def errback_here(request, exc, traceback):
    """Celery calls it where the call has failed, since it takes more than one argument."""
    reach("errback called: before")
    report("failed", number=request.args[0], again=False)
    if is_measured(request.task):
        reach("errback called: after")


app.tasks["celery.chord_unlock"].max_retries = 20
