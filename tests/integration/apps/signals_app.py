"""Batch tasks on a worker whose signals, requests and handlers all report."""

from celery import Celery, current_task, signals
from celery.worker.request import Request
from reporting import report

from celery_batches import Batches

app = Celery("signals")
app.config_from_object("celeryconfig")


class ReportingRequest(Request):
    def acknowledge(self):
        if not self.acknowledged:
            report("ack", id=self.id)
        super().acknowledge()

    # Celery's own subclass of this class replaces `on_success`, but not these.
    def on_accepted(self, pid, time_accepted):
        report("request accepted", id=self.id)
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info, **kwargs):
        report("request failed", id=self.id)
        return super().on_failure(exc_info, **kwargs)


class CallingTask(Batches):
    def __call__(self, *args, **kwargs):
        report("called", sizes=[len(arg) for arg in args])
        return super().__call__(*args, **kwargs)


OPTIONS = {"flush_every": 3, "flush_interval": 600}


@app.task(base=CallingTask, bind=True, **OPTIONS)
def watched(self, requests):
    report(
        "body",
        batch=self.request.id,
        current=current_task.request.id,
        name=current_task.name,
        members=[request.id for request in requests],
    )
    return "the batch"


@app.task(base=Batches, Request=ReportingRequest, **OPTIONS)
def failing(requests):
    raise KeyError("no such luck")


def wait_for_go(requests):
    report("started")
    with open("go") as gate:  # A FIFO: it opens when the test opens its end.
        gate.read()
    report("ended")


early = app.task(base=Batches, name="early", Request=ReportingRequest, **OPTIONS)(wait_for_go)
late = app.task(
    base=Batches, name="late", acks_late=True, Request="signals_app:ReportingRequest", **OPTIONS
)(wait_for_go)


@signals.task_received.connect
def on_received(request, **kwargs):
    report("task_received", id=request.id)


def per_batch(name):
    def handler(sender, **kwargs):
        report(name, task=sender.name, id=kwargs.get("task_id"), state=kwargs.get("state"))

    getattr(signals, name).connect(handler, weak=False)


for name in ("task_prerun", "task_postrun", "task_success", "task_failure"):
    per_batch(name)
