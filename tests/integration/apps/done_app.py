"""Batch tasks, some of whose requests are done when their process ends; and an ordinary task."""

import os
import signal

from celery import Celery, Task, signals
from celery.worker.request import Request
from reporting import hang, report

from celery_batches import Batches

app = Celery("done")
app.config_from_object("celeryconfig")


class ReportingRequest(Request):
    def send_event(self, type, **fields):
        if type not in ("task-received", "task-started"):
            report("sent", id=self.id, type=type)
        super().send_event(type, **fields)

    def acknowledge(self):
        if not self.acknowledged:
            report("ack", id=self.id)
        super().acknowledge()


class Handlers:
    """Report each failure; and hang, or end the process, when the first request is done."""

    at_success = None

    def on_success(self, retval, task_id, args, kwargs):
        report("on_success", id=task_id)
        if self.at_success == "hang":
            hang()
        elif self.at_success == "kill":
            with open("die"):  # A FIFO: it opens when the test opens its end.
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.at_success == "wait":
            with open("go"):
                pass
        elif self.at_success == "soft":
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        report("on_failure", id=task_id, exc=exc)


class Batch(Handlers, Batches):
    pass


class Plain(Handlers, Task):
    pass


COMMON = {"Request": ReportingRequest}
SIX = {"base": Batch, "flush_every": 6, "flush_interval": 600, **COMMON}
ACKS = {
    "early": {},
    "late": {"acks_late": True},
    "rejecting": {"acks_late": True, "reject_on_worker_lost": True},
    "unacknowledging": {"acks_late": True, "acks_on_failure_or_timeout": False},
}


def mark_three(requests):
    """Mark three, one of them as failed, and hang."""
    report("run", ids=[request.id for request in requests])
    if len(requests) < 6:  # What is delivered again.
        for request in requests:
            request.mark_as_done("again")
        return
    done, failed, also_done = requests[:3]
    app.backend.mark_as_done(done.id, "done", request=done)
    app.backend.mark_as_failure(failed.id, KeyError("failed"), request=failed)
    app.backend.mark_as_done(also_done.id, "done", request=also_done)
    report("marked", ids=[request.id for request in requests])
    hang()


def mark_all(requests):
    report("run", ids=[request.id for request in requests])
    for request in requests:
        request.mark_as_done("done")


def be_done(number):
    return "done"


marked, limited, killed, settled, plain_killed = {}, {}, {}, {}, {}
for kind, options in ACKS.items():
    marked[kind] = app.task(name=f"{kind}_marked", **SIX, **options)(mark_three)
    limited[kind] = app.task(name=f"{kind}_limited", time_limit=1.5, **SIX, **options)(mark_three)
    settled[kind] = app.task(
        name=f"{kind}_settled", at_success="hang", time_limit=1.5, **SIX, **options
    )(mark_all)
    killed[kind] = app.task(name=f"{kind}_killed", at_success="kill", **SIX, **options)(mark_all)
    plain_killed[kind] = app.task(
        name=f"{kind}_plain_killed", base=Plain, at_success="kill", **COMMON, **options
    )(be_done)


def interrupt(requests):
    os.kill(os.getpid(), signal.SIGUSR1)
    hang()


unhurried = app.task(name="unhurried", at_success="wait", time_limit=1.5, **SIX)(mark_all)
softly = app.task(name="softly", at_success="soft", soft_time_limit=600, **SIX)(mark_all)
interrupted = app.task(name="interrupted", **SIX)(interrupt)


@app.task
def last():
    report("last")


@app.task
def link(result, task_id):
    report("link", id=task_id)


@app.task
def errback(request, exc, traceback):
    report("errback", id=request.id)


@signals.task_failure.connect
def on_failure(task_id, **kwargs):
    report("task_failure", id=task_id)
