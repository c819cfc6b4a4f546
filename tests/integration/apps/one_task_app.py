"""A batch task beside an ordinary one: what each shows to whoever hooks into Celery's tracer."""

import functools
import sys

import celery.app.trace
from celery import Celery, Task, signals
from reporting import report

from celery_batches import Batches

app = Celery("one_task")
app.config_from_object("celeryconfig")


def live():
    """The exception that an error reporter finds."""
    return getattr(sys.exc_info()[0], "__name__", None)


def wrap_tracer(build_tracer):
    """Hook into Celery's tracer, as tools for errors and performance do."""

    def build(name, task, *args, **kwargs):
        if not getattr(task, "marked_as_wrapped", False):
            task.run = wrap_run(task, task.run)
            task.marked_as_wrapped = True
        tracer = build_tracer(name, task, *args, **kwargs)

        def trace(*args):
            report("transaction", task=task.name, id=args[0], positional=len(args))
            return tracer(*args)

        return trace

    return build


def wrap_run(task, run):
    @functools.wraps(run)
    def wrapped(*args, **kwargs):
        try:
            return run(*args, **kwargs)
        except Exception as exc:
            report("left run", task=task.name, id=task.request.id, error=type(exc).__name__)
            raise

    return wrapped


# In the worker only, before it imports what is replaced here; the test imports this module too.
if "worker" in sys.argv:
    celery.app.trace.build_tracer = wrap_tracer(celery.app.trace.build_tracer)


class Reports:
    def on_failure(self, exc, task_id, args, kwargs, einfo):
        report("on_failure", task=self.name, id=task_id, live=live())

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        report("on_retry", task=self.name, id=task_id, live=live())


class ReportingTask(Reports, Task):
    abstract = True


class ReportingBatches(Reports, Batches):
    abstract = True
    flush_every = 2
    flush_interval = 600


RETRIES = {"autoretry_for": (OSError,), "max_retries": 1, "default_retry_delay": 0}


@app.task(base=ReportingBatches, name="batch.fails")
def batch_fails(requests):
    raise ValueError("no")


@app.task(base=ReportingTask, name="ordinary.fails")
def ordinary_fails():
    raise ValueError("no")


@app.task(base=ReportingBatches, name="batch.retries", **RETRIES)
def batch_retries(requests):
    raise OSError("away")


@app.task(base=ReportingTask, name="ordinary.retries", **RETRIES)
def ordinary_retries():
    raise OSError("away")


@app.task(base=ReportingBatches, name="batch.marks")
def batch_marks(requests):
    requests[0].mark_as_failure(KeyError("mine"))
    requests[1].retry(exc=LookupError("later"), countdown=600)


@app.task(name="other")
def other():
    pass


def report_context(task, request):
    options = task.signature_from_request(request).options
    report(
        "context",
        task=task.name,
        headers=task.request.headers,
        options=sorted(options),
        root_id=options["root_id"] == request.id,
    )
    other.apply_async(headers=task.request.headers)


@app.task(base=ReportingBatches, name="batch.context", bind=True, flush_every=1)
def batch_context(self, requests):
    report_context(self, requests[0])


@app.task(base=ReportingTask, name="ordinary.context", bind=True)
def ordinary_context(self):
    report_context(self, self.request)


def on_signal(name):
    def receive(sender=None, **told):
        task_id = told.get("task_id") or getattr(told.get("request"), "id", None)
        facts = {"state": told.get("state"), "value": type(told.get("retval")).__name__}
        report(name, task=sender.name, id=task_id, live=live(), **facts)

    getattr(signals, name).connect(receive, weak=False)


for name in ("task_prerun", "task_postrun", "task_failure", "task_retry", "task_success"):
    on_signal(name)


@signals.task_prerun.connect(sender=batch_fails)
def of_one_sender(sender=None, task=None, **told):
    report("of one sender", equal=sender == batch_fails and task == batch_fails)
