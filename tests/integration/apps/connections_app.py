"""Batch tasks whose runs are counted; a call may hold its batch until it is let go."""

import os
import socket

from celery import Celery, signals
from celery.utils.log import get_logger
from reporting import report

from celery_batches import Batches

logger = get_logger(__name__)

app = Celery("connections")
app.config_from_object("celeryconfig")


def wait_for_the_gate():
    """Wait until the test opens its gate: a socket, so that other greenlets go on."""
    with socket.socket(socket.AF_UNIX) as gate:
        try:
            gate.connect(os.environ["GATE"])
        except (ConnectionError, FileNotFoundError):
            return  # It is open.
        gate.recv(1)


def count(requests):
    numbers = [request.args[0] for request in requests]
    report("run", numbers=numbers, redelivered=[request.redelivered for request in requests])
    if any(len(request.args) > 1 for request in requests):
        wait_for_the_gate()
    report("end", numbers=numbers)


def define(name, **options):
    late = name.endswith("late")
    options = {"base": Batches, "acks_late": late, "ignore_result": True, **options}
    return app.task(name=name, **options)(count)


buffered = {}
quick = {}
limited = {}
running = {}
for kind in ("early", "late"):
    buffered[kind] = define(f"buffered_{kind}", flush_every=5, flush_interval=600)
    quick[kind] = define(f"quick_{kind}", flush_every=100, flush_interval=0.5)
    limited[kind] = define(f"limited_{kind}", flush_every=2, flush_interval=600, rate_limit="1/h")
    # One of two that run may be acknowledged, and the other come again.
    running[kind] = define(f"running_{kind}", flush_every=2, flush_interval=3)


@signals.task_received.connect
def on_received(request, **kwargs):
    report("received", numbers=[request.args[0]])


@signals.task_revoked.connect
def on_revoked(request, **kwargs):
    report("revoked", numbers=[request.args[0]])


@signals.task_retry.connect
def on_retry(request, **kwargs):
    report("retry", numbers=[request.args[0]])


@signals.worker_ready.connect
def on_ready(**kwargs):
    # Celery's greenlets do not catch the errors of a connection; the harness takes a traceback as a
    # sign of trouble in a log without errors.
    logger.error("Tracebacks are to be expected")
