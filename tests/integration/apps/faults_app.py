"""Batch tasks whose runs are counted, message by message."""

from celery import Celery, signals
from celery.utils.log import get_logger
from reporting import report

from celery_batches import Batches

logger = get_logger(__name__)

app = Celery("faults")
app.config_from_object("celeryconfig")


def count(requests):
    report("run", numbers=[request.args[0] for request in requests])


OPTIONS = {"base": Batches, "flush_every": 10, "flush_interval": 2}
early = app.task(name="early", **OPTIONS)(count)
late = app.task(name="late", acks_late=True, **OPTIONS)(count)


@signals.task_received.connect
def on_received(request, **kwargs):
    report("received", numbers=list(request.args))


@signals.worker_ready.connect
def on_ready(**kwargs):
    # Celery's greenlets do not catch the errors of a connection; the harness takes a traceback as a
    # sign of trouble in a log without errors.
    logger.error("Tracebacks are to be expected")
