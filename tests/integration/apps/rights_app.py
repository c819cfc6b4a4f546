"""The same calls for a batch task and for an ordinary one: done, failed, retried, in a chord."""

from celery import Celery
from reporting import report

from celery_batches import Batches

app = Celery("rights")
app.config_from_object("celeryconfig")


class Failure(Exception):
    pass


def batch_body(requests):
    for request in requests:
        (what,) = request.args
        if what == "fail":
            request.mark_as_failure(Failure())
        elif what == "retry" and not request.retries:
            request.retry(countdown=0)
        else:
            request.mark_as_done(what)


def ordinary_body(self, what):
    if what == "fail":
        raise Failure
    if what == "retry" and not self.request.retries:
        raise self.retry(countdown=0)
    return what


for mode, options in {"early": {}, "late": {"acks_late": True}}.items():
    options["throws"] = (Failure,)  # Known, so no error in the log.
    batches = {"base": Batches, "flush_every": 3, "flush_interval": 2}
    app.task(name=f"batch_{mode}", **batches, **options)(batch_body)
    app.task(name=f"ordinary_{mode}", bind=True, **options)(ordinary_body)


@app.task(name="total")
def total(results):
    report("total")
    return len(results)
