"""Batch tasks whose calls say, by their arguments, what the body does to them."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from celery import Celery, signals
from celery.exceptions import Reject
from celery.utils.log import get_logger
from celery.worker.request import Request
from reporting import report

from celery_batches import Batches

logger = get_logger(__name__)

app = Celery("outcomes")
app.config_from_object("celeryconfig")


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self, *args):
        super().__init__(*args)
        self.lock = Lock()


class RejectingRequest(Request):
    def reject(self, requeue=False):
        super().reject(requeue)
        report("reject", id=self.id)


def done_by_backend(request):
    app.backend.mark_as_done(request.id, "by the backend", request=request)


def failed_by_backend(request):
    app.backend.mark_as_failure(request.id, KeyError("by the backend"), request=request)


WAYS = {
    "backend done": done_by_backend,
    "request done": lambda request: request.mark_as_done("by the request"),
    "backend failure": failed_by_backend,
    "request failure": lambda request: request.mark_as_failure(KeyError("by the request")),
    "retry": lambda request: request.retry(countdown=0),
    "reject": lambda request: request.reject(),
    "backend object": lambda r: app.backend.mark_as_done(r.id, object(), request=r),
    "request object": lambda request: request.mark_as_done(object()),
    "request locked": lambda request: request.mark_as_failure(Locked("by the request")),
}


def act(request):
    """Do to the request what its arguments say, in turn; a retried one is done at once."""
    for way in ["request done"] if request.retries else request.args:
        WAYS[way](request)


class ReportingBatches(Batches):
    def on_success(self, retval, task_id, args, kwargs):
        report("on_success", task=self.name, id=task_id, retval=retval)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        report("on_failure", task=self.name, id=task_id, exc=exc)


def define(name, size, error=None, **options):
    """A batch task that does what its calls say, and then returns or raises."""

    def body(requests):
        for request in requests:
            act(request)
        if error is not None:
            raise error(f"by {name}")
        return "by return"

    options.setdefault("base", ReportingBatches)
    return app.task(name=name, flush_every=size, flush_interval=600, **options)(body)


returning = define("returning", 7, Request=RejectingRequest)
raising = define("raising", 7, RuntimeError, Request=RejectingRequest)
twice_returning = define("twice_returning", 8)
twice_raising = define("twice_raising", 8, RuntimeError)
objects = define("objects", 3)
locked = define("locked", 2)
locked_body = define("locked_body", 2, Locked)
throwing = define("throwing", 3, KeyError, throws=(KeyError,))
breaking = define("breaking", 3, RuntimeError, throws=(KeyError,))
ignoring = define("ignoring", 4, RuntimeError, ignore_result=True)
storing = define("storing", 4, RuntimeError, ignore_result=False)
by_setting = define("by_setting", 4, RuntimeError)
keeping_errors = define(
    "keeping_errors", 4, RuntimeError, ignore_result=True, store_errors_even_if_ignored=True
)


@app.task(base=Batches, name="threaded", flush_every=8, flush_interval=600)
def threaded(requests):
    with ThreadPoolExecutor(8) as helpers:
        list(helpers.map(act, requests))


@app.task(name="marker")
def marker(key):
    report("marker", key=key)


@app.task(name="rejected_alone", Request=RejectingRequest)
def rejected_alone():
    raise Reject("by the body", requeue=False)


@app.task(name="locked_alone")
def locked_alone(where):
    raise Locked(where)


@signals.task_failure.connect
def on_failure(sender, task_id, exception, einfo, **kwargs):
    facts = {"exc": exception, "einfo": type(einfo).__name__}
    report("task_failure", task=sender.name, id=task_id, **facts)


@signals.task_success.connect
def on_success(sender, result, **kwargs):
    report("task_success", task=sender.name, result=result)


@signals.worker_ready.connect
def on_ready(**kwargs):
    # A Reject is a warning with a traceback, which the harness takes as a sign of trouble in a log
    # without errors.
    logger.error("Tracebacks are to be expected")
