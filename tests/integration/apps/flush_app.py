"""Batch tasks whose `flush` is overridden, and an ordinary task beside them."""

from threading import Timer

from celery import Celery
from reporting import report

from celery_batches import Batches, SimpleRequest

app = Celery("flush")
app.config_from_object("celeryconfig")


class Override(Batches):
    abstract = True
    flush_every = 4
    flush_interval = 0.3


class Filters(Override):
    abstract = True

    def flush(self, requests):
        return super().flush([r for r in requests if r.args[0] != "drop"])


class Raises(Override):
    abstract = True

    def flush(self, requests):
        raise RuntimeError("the override is wrong")


class Raises_later(Override):
    abstract = True

    def flush(self, requests):
        super().flush(requests[:1])
        raise RuntimeError("the override is wrong")


class Later(Override):
    """Hands each batch on from another thread, after `flush` has returned."""

    abstract = True

    def flush(self, requests):
        Timer(0.1, super().flush, [requests]).start()
        Timer(0.1, super().flush, [requests]).start()


class Next(Override):
    """Keeps one request of each batch for the next."""

    abstract = True
    kept = ()

    def flush(self, requests):
        kept, self.kept = self.kept, requests[:1]
        return super().flush([*kept, *requests[1:]])


class Own(Override):
    """As in 0.1: the body gets request objects of the override."""

    abstract = True

    def flush(self, requests):
        return self.apply_buffer(requests, ([SimpleRequest.from_request(r) for r in requests],))


def run(requests):
    report("batch", args=[request.args[0] for request in requests])
    for request in requests:
        request.mark_as_done(request.args[0])


for kind in (Filters, Raises, Raises_later, Later, Next, Own):
    name = kind.__name__.lower()
    app.task(base=kind, name=name)(run)
    app.task(base=kind, name=f"{name}_late", acks_late=True)(run)

app.task(base=Own, name="own_full", flush_interval=600)(run)


@app.task(name="ordinary")
def ordinary(value):
    return value


@app.task(name="errback")
def errback(request, exc, traceback):
    report("errback", id=request.id, exc=repr(exc))


@app.task(name="collect")
def collect(values):
    return values
