"""Batch tasks whose bodies return their results, in links, chains and chords."""

from threading import Event

from celery import Celery
from celery.utils.log import get_logger
from reporting import report

from celery_batches import Batches

logger = get_logger(__name__)

app = Celery("returned")
app.config_from_object("celeryconfig")


class Poison(ValueError):
    pass


@app.task(name="told")
def told(value, name):
    report("told", name=name, value=value)


@app.task(name="told_error")
def told_error(request, exc, traceback, name):
    report("told_error", name=name, id=request.id)


@app.task(name="add")
def add(values):
    return sum(values)


@app.task(name="following")
def following(value):
    return value + 100


def double(request):
    """Twice a number, or how else the request is to end. A retry is done."""
    (what,) = request.args
    if isinstance(what, int):
        return what * 2
    if request.retries:
        return 5
    if what == "refused":
        return object
    return {"fail": KeyError, "again": OSError}[what]("item")


OPTIONS = {
    "base": Batches,
    "flush_interval": 600,
    "return_results": True,
    "autoretry_for": (OSError,),
    "retry_kwargs": {"countdown": 0},
}


@app.task(name="listed", flush_every=4, **OPTIONS)
def listed(requests):
    return list(map(double, requests))


@app.task(name="by_id", flush_every=4, **OPTIONS)
def by_id(requests):
    return {request.id: double(request) for request in reversed(requests)}


@app.task(name="halved", flush_every=4, bisect_on_failure=Poison, **OPTIONS)
def halved(requests):
    if any(request.args == ["poison"] for request in requests):
        raise Poison("no")
    return list(map(double, requests))


@app.task(name="single", flush_every=4, unique_key="key", **OPTIONS)
def single(requests):
    report("single", size=len(requests))
    return [double(request) for request in requests]


@app.task(name="limited", flush_every=4, bisect_on_failure=True, soft_time_limit=2, **OPTIONS)
def limited(requests):
    report("limited", size=len(requests))
    if len(requests) == 4:
        raise Poison
    if requests[0].args == [2]:
        Event().wait()
    return list(map(double, requests))
