"""A batch task that tells all it knows of each of its requests."""

from celery import Celery
from reporting import report

from celery_batches import Batches

app = Celery("context")
app.config_from_object("celeryconfig")

NAMES = (
    *("id", "name", "args", "kwargs", "hostname", "ignore_result", "reply_to", "correlation_id"),
    *("root_id", "parent_id", "group", "group_index", "chord", "chain", "callbacks", "errbacks"),
    *("retries", "eta", "expires", "headers", "stamps", "stamped_headers", "redelivered"),
    *("delivery_info", "shadow", "origin", "timelimit", "time_limit", "soft_time_limit"),
)


@app.task(base=Batches, flush_every=16, flush_interval=0.5)
def tell(requests):
    for request in requests:
        report("told", **{name: getattr(request, name) for name in NAMES})
        app.backend.mark_as_done(request.id, request.args[0], request=request)


@app.task
def total(numbers):
    report("total", numbers=numbers)
    return sum(numbers)


@app.task(bind=True)
def spawn(self, number):
    report("spawned", id=self.request.id, child=tell.delay(number).id)
