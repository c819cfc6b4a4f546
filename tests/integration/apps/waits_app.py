"""A batch task and an ordinary one, whose messages come from a quorum queue and wait for long."""

from celery import Celery
from kombu import Exchange, Queue
from reporting import report

from celery_batches import Batches

app = Celery("waits")
app.config_from_object("celeryconfig")

QUEUE = app.conf.task_default_queue
app.conf.task_queues = [
    Queue(QUEUE, Exchange(QUEUE), routing_key=QUEUE, queue_arguments={"x-queue-type": "quorum"})
]


@app.task(base=Batches, flush_every=100, flush_interval=3600)
def batch(requests):
    report("run", numbers=[request.args[0] for request in requests])


@app.task
def ordinary(number):
    report("run", numbers=[number])
