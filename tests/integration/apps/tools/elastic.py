"""Elastic APM: its signal handlers for Celery, and a transport of ours that gets the events."""

import elasticapm
from elasticapm import Client
from elasticapm.contrib.celery import register_exception_tracking, register_instrumentation
from elasticapm.transport.base import Transport
from reporting import report

from . import own


class Reporter(Transport):
    def start_thread(self, pid=None):
        """There is nothing to do later."""

    def queue(self, event_type, data, flush=False):
        if event_type == "transaction":
            report_transaction(data)
        elif event_type == "error":
            report_error(data)

    def close(self):
        """There is nothing to send."""


def report_transaction(data):
    report(
        "transaction",
        name=data["name"],
        id=data["id"],
        marks=marks(data),
        ended=data["outcome"],
        state=data["result"],
    )


def report_error(data):
    raised = data["exception"]
    report(
        "error",
        id=data["transaction_id"],
        marks=marks(data),
        exception=raised["type"],
        message=raised["message"].removeprefix(f"{raised['type']}: "),
        handled=raised["handled"],
        causes=[cause["type"] for cause in raised.get("cause", [])],
        frames=own((frame["abs_path"], frame["function"]) for frame in raised["stacktrace"]),
    )


def marks(data):
    context = data.get("context", {})
    found = [context.get("user", {}).get("id"), context.get("tags", {}).get("mark")]
    return [mark for mark in found if mark]


def mark():
    elasticapm.set_user_context(user_id="a user")
    elasticapm.label(mark="a label")


client = Client(
    service_name="tools",
    transport_class="tools.elastic.Reporter",
    central_config=False,
    cloud_provider="none",
    metrics_interval="0s",
)
register_exception_tracking(client)
register_instrumentation(client)
