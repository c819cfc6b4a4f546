"""Batch tasks of three sizes, one of each and three of each."""

from celery import Celery

from celery_batches import Batches

app = Celery("filling")
app.config_from_object("celeryconfig")

for size in (10, 100, 1000):

    @app.task(base=Batches, name=f"by_{size}", flush_every=size, flush_interval=600)
    def by_size(requests):
        return len(requests)

    for number in range(3):

        @app.task(base=Batches, name=f"{size}_{number}", flush_every=size, flush_interval=600)
        def one_of_three(requests):
            return len(requests)


@app.task(base=Batches, name="late", flush_every=100, flush_interval=600, acks_late=True)
def late(requests):
    return len(requests)
