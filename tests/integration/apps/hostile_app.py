"""A batch task that tells which of its calls it got, and an ordinary task next to it."""

from celery import Celery
from reporting import report

from celery_batches import Batches

app = Celery("hostile")
app.config_from_object("celeryconfig")


@app.task(base=Batches, acks_late=True, flush_every=10, flush_interval=0.5)
def take(requests):
    report("took", numbers=[request.args[0] for request in requests])
    for request in requests:
        request.mark_as_done(request.args[0])


@app.task
def ordinary(number):
    report("ordinary", number=number)
