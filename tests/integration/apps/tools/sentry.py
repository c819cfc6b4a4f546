"""Sentry: its Celery integration is there by itself; a transport of ours gets the envelopes."""

import sentry_sdk
from reporting import report
from sentry_sdk.transport import Transport

from . import own


class Reporter(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if transaction := item.get_transaction_event():
                report_transaction(transaction)
            elif event := item.get_event():
                report_error(event)


def report_transaction(event):
    trace = event["contexts"]["trace"]
    report("transaction", **found(event), operation=trace["op"], ended=trace["status"])


def report_error(event):
    *causes, raised = event["exception"]["values"]
    frames = raised["stacktrace"]["frames"]
    report(
        "error",
        **found(event),
        exception=raised["type"],
        message=raised["value"],
        handled=raised["mechanism"]["handled"],
        causes=[cause["type"] for cause in causes],
        frames=own((frame["filename"], frame["function"]) for frame in frames),
    )


def found(event):
    """What an error and a transaction have in common."""
    job = event.get("extra", {}).get("celery-job", {})
    crumbs = event.get("breadcrumbs", {}).get("values", [])
    marks = [event.get("user", {}).get("id"), event.get("tags", {}).get("mark")]
    marks += [crumb["message"] for crumb in crumbs if crumb.get("category") == "mark"]
    return {
        "name": event.get("transaction"),
        "id": event.get("tags", {}).get("celery_task_id"),
        "task": job.get("task_name"),
        "marks": [mark for mark in marks if mark],
    }


def mark():
    sentry_sdk.set_user({"id": "a user"})
    sentry_sdk.set_tag("mark", "a tag")
    sentry_sdk.add_breadcrumb(category="mark", message="a breadcrumb")


sentry_sdk.init(
    dsn="https://key@sentry.invalid/1",
    transport=Reporter,
    traces_sample_rate=1.0,
    auto_session_tracking=False,
)
