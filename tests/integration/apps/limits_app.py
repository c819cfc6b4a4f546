"""Batch tasks with time limits and rate limits."""

from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded
from reporting import hang as run_for_ever
from reporting import report

from celery_batches import Batches

app = Celery("limits")
app.config_from_object("celeryconfig")


def settle(requests):
    for request in requests:
        app.backend.mark_as_done(request.id, request.args[0] * 2, request=request)


def hang(requests):
    report("hang", ids=[request.id for request in requests])
    run_for_ever()


PAIRS = {"base": Batches, "flush_every": 2, "flush_interval": 600}

#: With the limits of the configuration, and with limits of its own.
by_setting = app.task(name="by_setting", **PAIRS)(hang)
by_option = app.task(name="by_option", time_limit=1.25, **PAIRS)(hang)
by_soft_option = app.task(name="by_soft_option", soft_time_limit=1.25, **PAIRS)(hang)


def wait_for_go(requests):
    report("gated")
    with open("go") as gate:  # A FIFO: it opens when the test opens its end.
        gate.read()
    settle(requests)


gated = app.task(name="gated", time_limit=1.25, **PAIRS)(wait_for_go)
softly_gated = app.task(name="softly_gated", soft_time_limit=1.25, **PAIRS)(wait_for_go)


@app.task(**PAIRS)
def quick(requests):
    settle(requests)


@app.task(soft_time_limit=1, base=Batches, flush_every=3, flush_interval=600)
def careful(requests):
    """Mark some of the requests when the time is up, and give up on the others."""
    settle(requests[:1])
    try:
        run_for_ever()
    except SoftTimeLimitExceeded:
        requests[1].mark_as_done("saved")
        raise


@app.task(soft_time_limit=1, **PAIRS)
def content(requests):
    """Be done with what there is when the time is up."""
    try:
        run_for_ever()
    except SoftTimeLimitExceeded:
        settle(requests)


def hang_once(requests):
    """Hang, the first time that a message is delivered."""
    again = all(request.delivery_info["redelivered"] for request in requests)
    report("run", ids=[request.id for request in requests], again=again)
    if not again:
        run_for_ever()


def hang_alone(self, number):
    hang_once([self.request])


ACKS = {
    "acknowledging": {"acks_on_failure_or_timeout": True},
    "rejecting": {"acks_on_failure_or_timeout": False},
    # The newer options; what knows nothing of them acts as with the first.
    "timeout_rejecting": {"acks_on_timeout": False, "acks_on_failure": True},
    "timeout_acknowledging": {"acks_on_timeout": True, "acks_on_failure": False},
}
for name, options in ACKS.items():
    late = {"acks_late": True, "time_limit": 1, **options}
    app.task(name=f"batch_{name}", **late, **PAIRS)(hang_once)
    app.task(name=f"plain_{name}", bind=True, **late)(hang_alone)


@app.task(base=Batches, flush_every=3, flush_interval=600, rate_limit="1/h")
def limited(requests):
    report("limited", args=[request.args[0] for request in requests])


@app.task(base=Batches, flush_every=3, flush_interval=600)
def free(requests):
    report("free", args=[request.args[0] for request in requests])


@app.task(base=Batches, flush_every=4, flush_interval=0.2, rate_limit="1/h")
def paced(requests):
    report("paced", args=[request.args[0] for request in requests])


@app.task(base=Batches, flush_every=4, flush_interval=0.2)
def ticking(requests):
    report("ticking")


@app.task
def last():
    report("last")


@app.task
def errback(request, exc, traceback):
    report("errback", id=request.id)


@signals.task_received.connect
def on_received(request, **kwargs):
    report("received", id=request.id, name=request.name)
