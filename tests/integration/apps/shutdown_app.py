"""Batch tasks and ordinary ones, each acknowledged early or late, on a worker that is to stop."""

from celery import Celery, Task, signals
from celery.worker.request import Request
from reporting import report

from celery_batches import Batches

app = Celery("shutdown")
app.config_from_object("celeryconfig")


class ReportingRequest(Request):
    def acknowledge(self):
        if not self.acknowledged:
            report("ack", id=self.id)
        super().acknowledge()

    def send_event(self, type, **fields):
        if type not in ("task-received", "task-started"):
            report("sent", id=self.id, type=type)
        super().send_event(type, **fields)


class Announcing:
    """What a request that is cancelled is to announce."""

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        report("on_retry", id=task_id, exc=exc, args=list(args))

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        report("on_failure", id=task_id, exc=exc)


def run(name, ids, gate):
    """Report, and wait at a FIFO of that name, if any, until the test holds its other end.

    Who is terminated meanwhile takes its time, at another FIFO, to clean up.
    """
    report("run", task=name, ids=ids)
    try:
        if gate is not None:
            with open(gate):
                pass
    except SystemExit:
        report("terminated", ids=ids)
        with open("clean"):
            pass
        report("cleaned up", ids=ids)
        raise
    report("ended", ids=ids)


class BatchTask(Announcing, Batches):
    pass


class PlainTask(Announcing, Task):
    pass


BATCHES = {"base": BatchTask, "Request": ReportingRequest, "flush_every": 3, "flush_interval": 600}


def define(kind, late):
    @app.task(name=f"{kind}_batch", acks_late=late, **BATCHES)
    def batch(requests):
        run(f"{kind}_batch", [request.id for request in requests], requests[0].args[0])
        for request in requests:
            request.mark_as_done(None)

    @app.task(name=f"{kind}_limited", acks_late=late, rate_limit="1/h", **BATCHES)
    def limited(requests):
        run(f"{kind}_limited", [request.id for request in requests], None)

    @app.task(
        name=f"{kind}_plain", bind=True, acks_late=late, base=PlainTask, Request=ReportingRequest
    )
    def plain(self, gate):
        run(f"{kind}_plain", [self.request.id], gate)

    return batch, plain, limited


batch, plain, limited = {}, {}, {}
for kind, is_late in {"early": False, "late": True}.items():
    batch[kind], plain[kind], limited[kind] = define(kind, is_late)


@signals.task_received.connect
def on_received(request, **kwargs):
    report("received", id=request.id)


@signals.task_retry.connect
def on_task_retry(request, **kwargs):
    report("task_retry", id=request.id)


@signals.task_failure.connect
def on_task_failure(task_id, **kwargs):
    report("task_failure", id=task_id)


@signals.worker_process_shutdown.connect
def on_process_shutdown(pid, **kwargs):
    report("process shutdown", pid=pid)
