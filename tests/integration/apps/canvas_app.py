"""One task in several ways: ordinary, and in batches that say how each call ended in their own way.

Each call is made for one scenario, named by `tag`, and reports how it was run.
"""

import traceback
from functools import partial

from celery import Celery, current_task, signals, states
from celery.backends.base import KeyValueStoreBackend
from reporting import report

from celery_batches import Batches

app = Celery("canvas")
app.config_from_object("celeryconfig")

KNOWN = (
    *("id", "args", "root_id", "parent_id", "group", "group_index", "retries", "delivery_info"),
    *("callbacks", "errbacks", "chain", "chord", "stamps", "stamped_headers"),
)


def ran(role, request, tag, event="ran"):
    facts = {name: getattr(request, name) for name in KNOWN}
    report(event, role=role, tag=tag, how=(request.kwargs or {}).get("how"), **facts)


def compute(args):
    """One more than the sum of all numbers; there is no such thing for less than nothing."""
    total = sum(map(add_up, args))
    if total < 0:
        raise ValueError("less than nothing")
    return total + 1


def add_up(value):
    return sum(map(add_up, value)) if isinstance(value, list) else value


def is_to_be_retried(request, how):
    """Whether this is the first run. The second waits for what is stored of the first.

    Celery sends the call again before it stores that, and then may write it over a result.
    """
    if how == "retry" and request.retries and isinstance(app.backend, KeyValueStoreBackend):
        while app.backend.get_state(request.id) != states.RETRY:
            pass
    return how == "retry" and not request.retries


@app.task(bind=True, default_retry_delay=0)
def plain(self, *args, tag, how="compute"):
    ran("member", self.request, tag)
    if is_to_be_retried(self.request, how):
        raise self.retry()
    return compute(args)


class Member(Batches):
    flush_every = 3
    flush_interval = 0.3
    default_retry_delay = 0


def start(task, requests):
    """Report each request; see to those that neither succeed nor fail, and return the others."""
    report(
        "body", name=task.name, batch=task.request.id, members=[request.id for request in requests]
    )
    others = []
    for request in requests:
        ran("member", request, request.kwargs["tag"])
        how = request.kwargs.get("how")
        if is_to_be_retried(request, how):
            request.retry()
        elif how == "reject":
            request.reject()
        else:
            others.append(request)
    return others


def mark_by_idiom(self, requests):
    for request in start(self, requests):
        try:
            result = compute(request.args)
        except ValueError as exc:
            trace = traceback.format_exc()
            app.backend.mark_as_failure(request.id, exc, traceback=trace, request=request)
        else:
            app.backend.mark_as_done(request.id, result, request=request)


def mark(self, requests):
    for request in start(self, requests):
        try:
            request.mark_as_done(compute(request.args))
        except ValueError as exc:
            request.mark_as_failure(exc)


idiom = app.task(base=Member, bind=True, name="canvas_app.idiom")(mark_by_idiom)
marks = app.task(base=Member, bind=True, name="canvas_app.marks")(mark)

IN_FOURS = {"base": Member, "bind": True, "flush_every": 4, "flush_interval": 600}
four_by_idiom = app.task(name="canvas_app.four_by_idiom", **IN_FOURS)(mark_by_idiom)
four_marks = app.task(name="canvas_app.four_marks", **IN_FOURS)(mark)


@app.task(base=Member, bind=True)
def raises(self, requests):
    """The good ones are marked, one way or the other; the body raises for the bad ones."""
    error = None
    for i, request in enumerate(start(self, requests)):
        try:
            result = compute(request.args)
        except ValueError as exc:
            error = exc
            continue
        if i % 2:
            request.mark_as_done(result)
        else:
            app.backend.mark_as_done(request.id, result, request=request)
    if error:
        raise error


@app.task(base=Member, bind=True, flush_every=6, flush_interval=600)
def shared(self, requests):
    """Uses both ways in one batch."""
    for i, request in enumerate(start(self, requests)):
        done, failed = request.mark_as_done, request.mark_as_failure
        if i % 2:
            done = partial(app.backend.mark_as_done, request.id, request=request)
            failed = partial(app.backend.mark_as_failure, request.id, request=request)
        try:
            done(compute(request.args))
        except ValueError as exc:
            failed(exc)


@app.task(base=Member, bind=True, flush_every=6, flush_interval=600)
def forgetful(self, requests):
    """Says nothing of how some of its requests ended."""
    for request in start(self, requests):
        if request.kwargs.get("how") != "forget":
            request.mark_as_done(compute(request.args))


@app.task(bind=True)
def step(self, *args, tag):
    ran("step", self.request, tag)
    return compute(args)


@app.task(bind=True)
def note(self, *args, tag):
    ran("note", self.request, tag)
    return args[0] if args else None


# By what the following two take, Celery knows how to call them.
@app.task
def sent_errback(task_id, *, tag):
    ran("sent_errback", current_task.request, tag)


@app.task
def called_errback(request, exc, traceback, *, tag):
    ran("called_errback", request, tag, event="called")
    report("told", tag=tag, exc=repr(exc), traced=type(exc).__name__ in str(traceback))
    note.delay("from an errback", tag=tag)


@app.task(bind=True)
def misfit(self, *, tag):
    """Nobody can call it with a result or the id of a task."""


@app.task
def marker():
    pass


@signals.task_received.connect
def on_received(request, **kwargs):
    report("received", id=request.id, name=request.name)


@signals.task_postrun.connect
def on_postrun(task_id, **kwargs):
    report("over", id=task_id)
