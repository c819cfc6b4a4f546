"""One application, run with the original celery-batches 0.11 and with this package."""

from celery import Celery, signals
from celery.exceptions import Reject
from reporting import report

from celery_batches import Batches

app = Celery("switching")
app.config_from_object("celeryconfig")

OPTIONS = {"base": Batches, "flush_every": 3, "flush_interval": 600}


@app.task(**OPTIONS)
def failing(requests):
    raise KeyError("no such luck")


@app.task(**OPTIONS)
def half_failing(requests):
    app.backend.mark_as_done(requests[0].id, "kept", request=requests[0])
    raise KeyError("the rest")


@app.task(**OPTIONS)
def marking(requests):
    for request in requests:
        app.backend.mark_as_done(request.id, request.args[0], request=request)


@app.task(**OPTIONS)
def marking_twice(requests):
    for request in requests:
        app.backend.mark_as_done(request.id, "first", request=request)
        app.backend.mark_as_failure(request.id, ValueError("second"), request=request)


@app.task(**OPTIONS)
def odd_result(requests):
    for request in requests:
        value = object() if request.args[0] == 0 else request.args[0]
        app.backend.mark_as_done(request.id, value, request=request)


@app.task(bind=True, **OPTIONS)
def retrying(self, requests):
    if requests[0].retries:
        for request in requests:
            app.backend.mark_as_done(request.id, "retried", request=request)
    else:
        raise self.retry(countdown=0)


@app.task(**OPTIONS)
def rejecting(requests):
    raise Reject("no", requeue=False)


@app.task(**OPTIONS)
def seen(requests):
    report("seen", args=[request.args[0] for request in requests])


@app.task(base=Batches, flush_every=3, flush_interval=1)
def patient(requests):
    report("seen", args=[request.args[0] for request in requests])


@app.task(base=Batches, flush_every=12, flush_interval=1)
def filling(requests):
    report("filling", size=len(requests))


class Handled(Batches):
    abstract = True

    def on_success(self, retval, task_id, args, kwargs):
        report("on_success", id=task_id, args=args)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        report("on_failure", id=task_id, args=args)


@app.task(**{**OPTIONS, "base": Handled})
def handled(requests):
    if requests[0].args[0] == "fail":
        raise KeyError


@app.task(bind=True, **OPTIONS)
def identified(self, requests):
    report("identified", id=self.request.id)


@app.task
def follow(value):
    report("followed", value=value)


def per_batch(name):
    def handler(sender, **kwargs):
        report(name, task=sender.name, id=kwargs.get("task_id"))

    getattr(signals, name).connect(handler, weak=False)


for name in ("task_prerun", "task_postrun", "task_success", "task_failure"):
    per_batch(name)
