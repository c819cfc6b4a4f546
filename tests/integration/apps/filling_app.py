"""Batch tasks of three sizes, an ordinary one, and three that share a worker."""

from celery import Celery

from celery_batches import Batches

app = Celery("filling")
app.config_from_object("celeryconfig")

for size in (10, 100, 1000):

    @app.task(base=Batches, name=f"by_{size}", flush_every=size, flush_interval=600)
    def by_size(requests):
        return len(requests)


for number in range(3):

    @app.task(base=Batches, name=f"third_{number}", flush_every=100, flush_interval=600)
    def third(requests):
        return len(requests)


@app.task(base=Batches, name="late", flush_every=100, flush_interval=600, acks_late=True)
def late(requests):
    return len(requests)
