"""django-structlog: its boot step; a processor of ours gets each event with what is bound to it."""

import sys

import django
import structlog
from django.conf import settings
from reporting import report

from . import own_of

settings.configure(
    INSTALLED_APPS=["django_structlog"],
    DJANGO_STRUCTLOG_CELERY_ENABLED=True,
)
django.setup()

#: What the test calls an event, if not "log".
KINDS = {"task_started": "transaction", "task_failed": "error"}

#: By id: only the first event of a run says which task it is.
names = {}


def record(logger, method, event):
    if event["event"].startswith("task_") and event["event"] != "task_enqueued":
        report_task(event, method)
    raise structlog.DropEvent


def report_task(event, level):
    task_id = event["task_id"]
    names.setdefault(task_id, event.get("task"))
    found = {"marks": [event["mark"]] if "mark" in event else []}
    if event.get("exc_info"):
        exc = sys.exc_info()[1]
        found["exception"] = type(exc).__name__
        found["message"] = str(exc)
        found["causes"] = causes(exc)
        found["frames"] = own_of(exc) if exc else []
    report(
        KINDS.get(event["event"], "log"),
        name=names[task_id],
        id=task_id,
        said=event["event"],
        level=level,
        timed="duration_ms" in event,
        **found,
    )


def causes(exc):
    """The classes of the exceptions that are logged with this one."""
    found = []
    while exc := exc and (exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)):
        found.append(type(exc).__name__)
    return found


def mark():
    structlog.contextvars.bind_contextvars(mark="a binding")


def watch(app):
    from django_structlog.celery.steps import DjangoStructLogInitStep

    app.steps["worker"].add(DjangoStructLogInitStep)


structlog.configure(processors=[structlog.contextvars.merge_contextvars, record])
