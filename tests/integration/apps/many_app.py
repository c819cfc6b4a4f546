"""Two hundred batch tasks, and an ordinary one."""

from celery import Celery, signals
from reporting import report

from celery_batches import Batches

app = Celery("many")
app.config_from_object("celeryconfig")


def define(number):
    name = f"batch-{number}"

    def body(requests):
        report("run", name=name, ids=[request.id for request in requests])

    return app.task(base=Batches, name=name, flush_every=4, flush_interval=600)(body)


BATCHES = [define(number) for number in range(200)]


@app.task(name="ordinary", bind=True)
def ordinary(self):
    report("run", name="ordinary", ids=[self.request.id])


@signals.task_revoked.connect
def on_revoked(request, **kwargs):
    report("revoked", id=request.id)
