"""A batch task for each cell of the table of outcomes."""

import logging
import os
import signal

from celery import Celery, signals
from celery.exceptions import Ignore
from kombu import Exchange, Queue
from outcome_bodies import CALLS, body_for
from outcome_table import ACKS, SIZE, Poison, cells_of_turn, task_options
from reporting import report

from celery_batches import Batches

__all__ = ("CALLS", "LOST", "POISONED", "TASKS", "dead", "parked", "queue")

app = Celery("table")
app.config_from_object("celeryconfig")
# Each task keeps what was requeued, and there are many tasks.
app.conf.worker_prefetch_multiplier = 0
app.conf.worker_lost_wait = 1

QUEUE = app.conf.task_default_queue
#: Nobody consumes them: there is what was retried, and what was rejected.
PARKED, DEAD = f"{QUEUE}-parked", f"{QUEUE}-dead"
on_amqp = app.conf.broker_url.startswith("amqp")
to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD} if on_amqp else None
queue, parked, dead = (
    Queue(name, Exchange(name), routing_key=name, queue_arguments=arguments)
    for name, arguments in ((QUEUE, to_dead), (PARKED, None), (DEAD, None))
)
app.conf.task_queues = [queue, parked]


def define(way, column, acks):
    options = {"base": Batches, "bind": True, **task_options(column, acks, PARKED)}
    name = f"{acks}/{column}/{way}"
    body = body_for(way, PARKED)
    return app.task(name=name, flush_every=SIZE, flush_interval=600, **options)(body)


TASKS = {each: define(*each) for each in cells_of_turn(app.conf.table_turn)}


def die(requests):
    if any(request.redelivered for request in requests):
        report("ignored", size=len(requests))
        raise Ignore
    os.kill(os.getpid(), signal.SIGKILL)


def define_lost(acks):
    options = {"base": Batches, "flush_every": SIZE, "flush_interval": 600, **ACKS[acks]}
    return app.task(name=f"{acks}/die", return_results=True, bisect_on_failure=True, **options)(die)


LOST = {acks: define_lost(acks) for acks in ACKS}


def define_poisoned(count):
    def body(requests):
        report("run", count=count, size=len(requests))
        poison = [request.args[0] for request in requests if request.args[1]]
        if poison:
            raise Poison(poison[0])
        return [request.args[0] for request in requests]

    options = {"flush_every": 100, "return_results": True, "bisect_on_failure": Poison}
    return app.task(name=f"poison-{count}", base=Batches, flush_interval=600, **options)(body)


#: By the numbers of the requests that have the body raise.
POISONED = {numbers: define_poisoned(len(numbers)) for numbers in ((37,), (0, 50, 99))}


@signals.task_prerun.connect
def on_prerun(task_id, **kwargs):
    report("batch")


@signals.after_setup_logger.connect
def on_logger(**kwargs):
    # Most of these batches fail. To write all those tracebacks takes longer than the rest.
    logging.getLogger("celery_batches.trace").setLevel(logging.CRITICAL)
