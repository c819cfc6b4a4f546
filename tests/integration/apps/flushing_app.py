"""Batch tasks that are flushed by other rules than size and interval."""

from celery import Celery
from reporting import report

from celery_batches import Batches

app = Celery("flushing")
app.config_from_object("celeryconfig")

LONG = 600


def keys_of(requests):
    report("batch", keys=[request.kwargs["key"] for request in requests])


by_key = app.task(
    base=Batches, name="by_key", flush_every=20, flush_interval=LONG, flush_key="key"
)(keys_of)

many_keys = app.task(
    base=Batches,
    name="many_keys",
    flush_every=20,
    flush_interval=2,
    flush_key=lambda request: request.kwargs["key"],
    flush_keys=50,
)(keys_of)

by_weight = app.task(
    base=Batches,
    name="by_weight",
    flush_every=100,
    flush_interval=LONG,
    flush_weight="bytes",
    flush_max_weight=10_000,
)(keys_of)

idle = app.task(base=Batches, name="idle", flush_every=100, flush_interval=LONG, flush_idle=1)(
    keys_of
)

expiring = app.task(base=Batches, name="expiring", flush_every=100, flush_interval=LONG)(keys_of)


@app.task(base=Batches, flush_every=2, flush_interval=LONG, flush_key=lambda r: 1 // r.args[0])
def broken(requests):
    for request in requests:
        request.mark_as_done(request.args[0])
