"""Bodies that forget or break something, and bodies whose threads or greenlets mark requests."""

from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from celery_batches import Batches

app = Celery("silent")
app.config_from_object("celeryconfig")

OPTIONS = {"base": Batches, "flush_every": 3, "flush_interval": 600}


@app.task(name="returns_a_list", **OPTIONS)
def returns_a_list(requests):
    return [request.args[0] * 2 for request in requests]


@app.task(name="marks_some", **OPTIONS)
def marks_some(requests):
    requests[0].mark_as_done(requests[0].args[0])


@app.task(name="wraps_a_generator", **OPTIONS)
def wraps_a_generator(requests):
    return (request.args[0] for request in requests)


@app.task(name="too_short", return_results=True, **OPTIONS)
def too_short(requests):
    return [1]


@app.task(name="marks_failures", base=Batches, flush_every=14, flush_interval=600, throws=KeyError)
def marks_failures(requests):
    for request in requests[:-1]:
        try:
            raise request.args[0]
        except (KeyError, ValueError) as exc:
            request.mark_as_failure(exc)
    requests[-1].mark_as_done("fine")


@app.task(name="fails_all", **OPTIONS)
def fails_all(requests):
    for request in requests:
        app.backend.mark_as_failure(request.id, ValueError(request.args[0]), request=request)


@app.task(name="in_threads", **OPTIONS)
def in_threads(requests):
    def mark(request):
        app.backend.mark_as_done(request.id, request.args[0] * 2)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(mark, requests[:2]))
    raise KeyError("after the marks")


@app.task(name="in_greenlets", **OPTIONS)
def in_greenlets(requests):
    import gevent

    def mark(request):
        app.backend.mark_as_done(request.id, request.args[0] * 2)

    gevent.joinall([gevent.spawn(mark, request) for request in requests[:2]], raise_error=True)
    raise KeyError("after the marks")


@app.task(name="knows_its_batch", bind=True, **{**OPTIONS, "flush_interval": 1})
def knows_its_batch(self, requests):
    batch = self.batch
    what = [
        batch.id,
        self.request.id,
        batch.trigger,
        batch.size,
        batch.waited,
        self.request.retries,
    ]
    for request in requests:
        request.mark_as_done(what)


@app.task(name="double")
def double(number):
    return number * 2
