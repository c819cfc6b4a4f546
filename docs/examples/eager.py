"""Run a batch task without a worker or a broker, for example in the tests of an application."""

from celery import Celery

from celery_batches import Batches, SimpleRequest

app = Celery("eager", broker="memory://")


@app.task(base=Batches, flush_every=100, flush_interval=10)
def add_up(requests):
    return sum(request.args[0] for request in requests)


def one_call():
    """Run a call as a batch of one. The result is what the body returns."""
    return add_up.apply(args=[5]).get()


def always_eager():
    """Let `delay` and `apply_async` do the same."""
    app.conf.task_always_eager = True
    return add_up.delay(5).get()


def whole_batch():
    """Call the body itself, with the requests of your choice."""
    requests = [SimpleRequest(f"id-{n}", "add_up", [n], {}, None, None) for n in (1, 2, 3)]
    return add_up(requests)
