"""Batch tasks that end in every way, beside an ordinary task that ends in the same ways."""

from celery import Celery
from celery.exceptions import Ignore, Reject
from reporting import report

from celery_batches import Batches

app = Celery("monitoring")
app.config_from_object("celeryconfig")


def wait_at_gate(event, **facts):
    report(event, **facts)
    with open("go") as gate:  # A FIFO: it opens when the test opens its end.
        gate.read()


LATE = {"acks_late": True, "default_retry_delay": 0}


@app.task(bind=True, **LATE)
def alone(self, how, word=None):
    again = self.request.retries or self.request.delivery_info["redelivered"]
    end_by_raising(self, how, again=again)
    return "the batch" if how == "unmarked" else how


def end_by_raising(task, how, *, again):
    if how in ("failed", "marked failed"):
        raise KeyError("no luck")
    if how == "retried" and not again:
        raise task.retry(exc=KeyError("no luck yet"))
    if how == "rejected":
        raise Reject("rejected by the body", requeue=False)
    if how == "requeued" and not again:
        raise Reject("not now", requeue=True)
    if how == "ignored":
        raise Ignore


@app.task(base=Batches, flush_every=8, flush_interval=0.5, **LATE)
def together(requests):
    """Each request ends in the way that it names."""
    report("together", size=len(requests))
    for request in requests:
        (how,) = request.args
        again = request.retries or request.redelivered
        if how == "marked":
            app.backend.mark_as_done(request.id, how, request=request)
        elif how == "marked failed":
            app.backend.mark_as_failure(request.id, KeyError("no luck"), request=request)
        elif how == "failed":
            request.mark_as_failure(KeyError("no luck"))
        elif how == "rejected":
            request.reject(requeue=False)
        elif how == "requeued" and not again:
            request.reject(requeue=True)
        elif how == "retried" and not again:
            request.retry(exc=KeyError("no luck yet"))
        elif how != "unmarked":
            request.mark_as_done(how)
    return "the batch"


@app.task(base=Batches, bind=True, flush_every=2, flush_interval=600, **LATE)
def at_once(self, requests):
    """All requests end in one way, most of them since the body raises."""
    how = requests[0].args[0]
    again = requests[0].retries or requests[0].redelivered
    end_by_raising(self, how, again=again)
    for request in requests:
        request.mark_as_done(how)


GATED = {"base": Batches, "flush_every": 3, "flush_interval": 600}


def settle(requests):
    for request in requests:
        if request.args[0] < 0:
            request.mark_as_failure(ValueError(f"{request.args[0]} is negative"))
        else:
            request.mark_as_done(request.args[0] * 2)


@app.task(**GATED)
def gated(requests):
    wait_at_gate("started", ids=[request.id for request in requests])
    settle(requests)


@app.task(**GATED)
def swift(requests):
    settle(requests)


@app.task(send_events=False, **GATED)
def quiet(requests):
    settle(requests)


@app.task(base=Batches, bind=True, flush_every=4, flush_interval=600)
def staged(self, requests):
    """Says how far each request is while the body runs."""
    marked, done, single, _ = requests
    app.backend.mark_as_done(marked.id, "marked", request=marked)
    done.mark_as_done("done")
    self.update_state(state="PROGRESS", meta={"percent": 50})
    self.update_state(task_id=single.id, state="LOADING", meta={"file": "a"})
    self.send_event("task-progress", percent=50)
    self.send_event("task-loading", uuid=single.id, file="a")
    wait_at_gate("staged")
    for request in requests[2:]:
        request.mark_as_done("late")


@app.task(bind=True)
def follow(self, number):
    report("followed", number=number, id=self.request.id)


@app.task(base=Batches, acks_late=True, flush_every=3, flush_interval=600)
def once(requests):
    """Is lost after the first two requests were marked."""
    report("once", calls=[[request.args[0], request.redelivered] for request in requests])
    for request in requests:
        if request.args[0] != "late" or request.redelivered:
            app.backend.mark_as_done(request.id, request.args[0], request=request)
    if not requests[0].redelivered:
        wait_at_gate("marked")
