"""A batch task and an ordinary one, which end when the test says so."""

from celery import Celery
from reporting import report

from celery_batches import Batches

app = Celery("failover")
app.config_from_object("celeryconfig")


def wait(ids):
    report("run", ids=ids)
    with open("go"):  # A FIFO: it opens when the test opens its end.
        pass


@app.task(base=Batches, flush_every=3, flush_interval=600, acks_late=True, return_results=True)
def batch(requests):
    wait([request.id for request in requests])
    return [request.args[0] for request in requests]


@app.task(bind=True, acks_late=True)
def ordinary(self, number):
    wait([self.request.id])
    return number
