"""Batch tasks whose requests tell what becomes of their messages."""

from celery import Celery, signals
from celery.exceptions import Ignore, Reject
from celery.utils.log import get_logger
from celery.worker.request import Request
from kombu import Exchange, Queue
from reporting import hang as run_for_ever
from reporting import report

from celery_batches import Batches

logger = get_logger(__name__)

app = Celery("acks")
app.config_from_object("celeryconfig")

QUEUE = app.conf.task_default_queue
DEAD = f"{QUEUE}-dead"
if app.conf.broker_url.startswith("amqp"):
    to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD}
    app.conf.task_queues = [
        Queue(QUEUE, Exchange(QUEUE), routing_key=QUEUE, queue_arguments=to_dead)
    ]


class ReportingRequest(Request):
    def acknowledge(self):
        if not self.acknowledged:
            report("act", id=self.id, act="ack")
        super().acknowledge()

    def reject(self, requeue=False):
        if not self.acknowledged:
            report("act", id=self.id, act="requeue" if requeue else "reject")
        super().reject(requeue)


class ReportingBatches(Batches):
    def on_failure(self, exc, task_id, args, kwargs, einfo):
        report("on_failure", id=task_id, exc=exc)


WAYS = {
    "backend done": lambda r: app.backend.mark_as_done(r.id, 1, request=r),
    "request done": lambda r: r.mark_as_done(1),
    "backend failure": lambda r: app.backend.mark_as_failure(r.id, KeyError("own"), request=r),
    "request failure": lambda r: r.mark_as_failure(KeyError("own")),
    "unmarked": lambda r: None,
    "retry": lambda r: r.retry(countdown=0),
    "reject": lambda r: r.reject(),
    "requeue": lambda r: r.reject(requeue=True),
}


def define(name, size, error=None, **options):
    """A batch task that does what its calls say, then returns or raises, and is lenient later."""

    def body(requests):
        again = [request.retries or request.redelivered for request in requests]
        for request in requests:
            facts = {"redelivered": request.redelivered, "retries": request.retries}
            report("ran", task=name, id=request.id, **facts)
            later = request.retries or request.redelivered
            WAYS["request done" if later else request.args[0]](request)
        if error is not None and not any(again):
            raise error

    options = {
        "base": ReportingBatches,
        "Request": ReportingRequest,
        "flush_interval": 600,
        **options,
    }
    return app.task(name=name, flush_every=size, **options)(body)


mixed, broken, ignored, rejected, requeued = {}, {}, {}, {}, {}
for kind, late in {"early": False, "late": True}.items():
    mixed[kind] = define(f"mixed_{kind}", 8, acks_late=late)
    broken[kind] = define(f"broken_{kind}", 3, RuntimeError("body"), acks_late=late)
    ignored[kind] = define(
        f"ignored_{kind}", 3, Ignore(), acks_late=late, acks_on_failure_or_timeout=False
    )
    rejected[kind] = define(f"rejected_{kind}", 3, Reject("no", requeue=False), acks_late=late)
    requeued[kind] = define(f"requeued_{kind}", 3, Reject("no", requeue=True), acks_late=late)

strict = define("strict", 6, RuntimeError("body"), acks_late=True, acks_on_failure_or_timeout=False)
# Of Celery 5.7 and newer.
strict_failure = define("strict_failure", 3, acks_late=True, acks_on_failure=False)
lenient_failure = define(
    "lenient_failure", 3, acks_late=True, acks_on_failure=True, acks_on_timeout=False
)


def time_out(requests):
    for request in requests:
        report("ran", task="timed", id=request.id, redelivered=request.redelivered)
    if not all(request.redelivered for request in requests):
        run_for_ever()


TIMED = {"base": Batches, "Request": ReportingRequest, "flush_every": 2, "flush_interval": 600}
TIMED.update(time_limit=1, acks_late=True)
timed = {
    "default": app.task(name="timed", **TIMED)(time_out),
    "neither": app.task(name="timed_neither", acks_on_failure_or_timeout=False, **TIMED)(time_out),
    # Of Celery 5.7 and newer.
    "failure only": app.task(name="timed_failure", acks_on_timeout=False, **TIMED)(time_out),
    "timeout only": app.task(name="timed_timeout", acks_on_failure=False, **TIMED)(time_out),
}


@app.task(
    name="marker",
    Request=ReportingRequest,
    acks_late=True,
    acks_on_failure_or_timeout=False,
    throws=(KeyError,),
)
def marker():
    """Be dropped, like the messages before it: as an ordinary task."""
    raise KeyError("marker")


@signals.worker_ready.connect
def on_ready(**kwargs):
    # A Reject is a warning with a traceback, which the harness takes as a sign of trouble in a log
    # without errors.
    logger.error("Tracebacks are to be expected")
