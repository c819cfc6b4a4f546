"""A batch task that is flushed all the time, by size and by interval."""

from celery import Celery
from reporting import report

from celery_batches import Batches

app = Celery("stress")
app.config_from_object("celeryconfig")


@app.task(base=Batches, flush_every=3, flush_interval=0.01, acks_late=True, ignore_result=True)
def tick(requests):
    report("tick", numbers=[request.args[0] for request in requests])
