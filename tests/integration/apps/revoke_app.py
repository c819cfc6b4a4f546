"""Batch tasks whose requests are revoked or expire, while they wait or while they run."""

from celery import Celery, signals
from reporting import hang as run_for_ever
from reporting import report

from celery_batches import Batches

app = Celery("revoke")
app.config_from_object("celeryconfig")


def settle(requests):
    for request in requests:
        app.backend.mark_as_done(request.id, request.args[0] * 2, request=request)


@app.task(base=Batches, flush_every=6, flush_interval=600)
def double(requests):
    report("double", ids=[request.id for request in requests])
    settle(requests)


@app.task(base=Batches, flush_every=2, flush_interval=600)
def pairs(requests):
    report("pairs", ids=[request.id for request in requests])
    settle(requests)


def run_or_hang(requests):
    """Hang, the first time that a message is delivered."""
    again = all(request.redelivered for request in requests)
    report("hang", ids=[request.id for request in requests], again=again)
    if not again:
        run_for_ever()
    settle(requests)


HANG = {"base": Batches, "flush_every": 3, "flush_interval": 0.5}

hang = app.task(name="hang", **HANG)(run_or_hang)
hang_late = app.task(name="hang_late", acks_late=True, reject_on_worker_lost=True, **HANG)(
    run_or_hang
)


@app.task(base=Batches, flush_every=2, flush_interval=600)
def gated(requests):
    report("gated")
    with open("go") as gate:  # A FIFO: it opens when the test opens its end.
        gate.read()
    settle(requests)


@signals.task_received.connect
def on_received(request, **kwargs):
    report("received", id=request.id)


@signals.task_revoked.connect
def on_revoked(request, terminated, expired, **kwargs):
    report("revoked", id=request.id, terminated=bool(terminated), expired=bool(expired))
