"""Batch tasks that run requests again, in every way there is to do so."""

from celery import Celery, signals
from reporting import report

from celery_batches import Batches

app = Celery("retries")
app.config_from_object("celeryconfig")


class ReportingBatches(Batches):
    def on_retry(self, exc, task_id, args, kwargs, einfo):
        report("on_retry", task=self.name, id=task_id, args=args, exc=exc, einfo=einfo)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        report("on_failure", task=self.name, id=task_id, args=args, exc=exc)


def define(name, size, body, **options):
    options = {"base": ReportingBatches, "flush_interval": 600, "max_retries": 2, **options}
    return app.task(name=name, flush_every=size, **options)(body)


def done_again(requests):
    """Those that were retried are done: return the others."""
    for request in requests:
        if request.retries or request.args[0] == "filler":
            request.mark_as_done([request.args[0], request.retries])
    return [request for request in requests if request.outcome_slot.outcome is None]


def retry_some(self, requests):
    """Some by themselves, the others all together."""
    new = done_again(requests)
    for request in new:
        match request.args[0]:
            case "own":
                request.retry(countdown=0, exc=KeyError("own"))
            case "done":
                request.mark_as_done(["done", 0])
            case "failed":
                request.mark_as_failure(ValueError("failed"))
    if new:
        raise self.retry(countdown=0, exc=OSError("rest"))


def retry_without_throwing(self, requests):
    for request in requests:
        if request.retries:
            request.mark_as_done(request.retries)
    if not requests[0].retries:
        self.retry(countdown=0, throw=False)
        report("went on", id=requests[0].id, retries=requests[0].retries)


def retry_always(requests):
    """Each with the exception and the limit that its arguments name."""
    for request in requests:
        match request.args:
            case ["filler"]:
                request.mark_as_done("filler")
            case [exc, limit]:
                exc = KeyError(exc) if exc else None
                request.retry(countdown=0, exc=exc, max_retries=limit)


def retry_all_always(self, requests):
    done = [request for request in requests if request.args[0] == "filler"]
    for request in done:
        request.mark_as_done("filler")
    if len(done) < len(requests):
        raise self.retry(countdown=0, exc=KeyError("all") if requests[0].args[0] else None)


def connect(requests):
    for request in requests:
        if request.args[0] == "filler" or request.kwargs.get("until") == request.retries:
            request.mark_as_done([request.args[0], request.retries])
    raise {"connection": ConnectionError, "reset": ConnectionResetError, "value": ValueError}[
        next(request.args[0] for request in requests if request.args[0] != "filler")
    ]("down")


def retry_with_a_limit_of_its_own(requests):
    (request,) = requests
    if request.args[0] == "connection":
        raise ConnectionError("down")
    if request.retries:
        request.mark_as_done("own")
    else:
        request.retry(countdown=0, max_retries=2)


some = define("some", 4, retry_some, bind=True)
unthrown = define("unthrown", 1, retry_without_throwing, bind=True)
limited = define("limited", 4, retry_always, max_retries=1)
all_limited = define("all_limited", 2, retry_all_always, bind=True, max_retries=1)
AUTOMATIC = {"autoretry_for": (OSError,), "dont_autoretry_for": (ConnectionResetError,)}
automatic = define(
    "automatic", 2, connect, retry_kwargs={"max_retries": 1, "countdown": 0}, **AUTOMATIC
)
backing_off = define(
    "backing_off", 3, connect, retry_backoff=1000, retry_backoff_max=3000, retry_jitter=False,
    max_retries=3, **AUTOMATIC
)  # fmt: skip

lenient_once = define(
    "lenient_once",
    1,
    retry_with_a_limit_of_its_own,
    max_retries=1,
    autoretry_for=(OSError,),
    default_retry_delay=0,
)

KEPT = (
    *("id", "args", "kwargs", "headers", "group", "group_index", "chord", "chain", "callbacks"),
    *("errbacks", "root_id", "parent_id", "expires", "timelimit", "reply_to", "correlation_id"),
    *("ignore_result", "stamps", "shadow", "origin"),
)


@app.task(base=Batches, name="keeping", flush_every=1, max_retries=3)
def keeping(requests):
    """Retry each as often as its arguments say, with the options that they say."""
    for request in requests:
        facts = {name: getattr(request, name) for name in KEPT}
        delivery = {key: request.delivery_info.get(key) for key in ("routing_key", "priority")}
        report("ran", retries=request.retries, facts=facts, **delivery)
        options = request.kwargs.get("options", {})
        if request.retries < request.kwargs.get("times", 1):
            request.retry(countdown=0, **options)
        else:
            request.mark_as_done(request.args[0])


@app.task(base=Batches, name="sent_again", flush_every=1)
def sent_again(requests):
    """As the documentation of old says it."""
    for request in requests:
        report("ran", id=request.id, retries=request.retries)
        if request.retries == 2:
            app.backend.mark_as_done(request.id, request.args[0], request=request)
            continue
        sent_again.apply_async(
            request.args,
            request.kwargs,
            task_id=request.id,
            countdown=0.01,
            retries=request.retries + 1,
        )


@app.task(name="total")
def total(numbers):
    return sum(numbers)


@app.task(name="add")
def add(number, other):
    return number + other


@app.task(name="marker")
def marker(key):
    report("marker", key=key)


@signals.task_received.connect
def on_received(request, **kwargs):
    report("received", task=request.name, id=request.id, root_id=request.root_id)


@signals.task_retry.connect
def on_retry(sender, request, reason, einfo, **kwargs):
    facts = {"exc": reason.exc, "when": reason.when, "retries": request.retries}
    report("task_retry", task=sender.name, id=request.id, args=request.args, **facts)


@signals.task_failure.connect
def on_failure(sender, task_id, exception, **kwargs):
    report("task_failure", task=sender.name, id=task_id, exc=exception)
