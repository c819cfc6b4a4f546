"""Rollbar: the signal handler that its documentation has; a handler of ours keeps each payload."""

import rollbar
from celery.signals import task_failure
from reporting import report

from . import own


def keep(payload, **kwargs):
    data = payload["data"]
    body = data["body"]
    trace, *causes = [body["trace"]] if "trace" in body else body["trace_chain"]
    report(
        "error",
        sender=data["custom"]["sender"],
        id=data["custom"]["task_id"],
        exception=trace["exception"]["class"],
        message=trace["exception"]["message"],
        causes=[cause["exception"]["class"] for cause in causes],
        frames=own((frame["filename"], frame["method"]) for frame in trace["frames"]),
        marks=[],
    )
    return False  # It is not sent.


@task_failure.connect
def send(**kwargs):
    rollbar.report_exc_info(extra_data=kwargs)


def mark():
    """Rollbar keeps nothing between reports."""


rollbar.init("token", "test", handler="blocking")
rollbar.events.add_payload_handler(keep)
