"""Datadog: its patch of Celery, and a trace filter of ours that gets the spans and drops them."""

import os

os.environ.update(
    DD_INSTRUMENTATION_TELEMETRY_ENABLED="false",
    DD_REMOTE_CONFIGURATION_ENABLED="false",
)

from ddtrace import patch
from ddtrace.trace import TraceFilter, tracer
from reporting import report

from . import own_in_text, short


class Reporter(TraceFilter):
    def process_trace(self, trace):
        for span in trace:
            if span.name == "celery.run":
                report_span(span)


def report_span(span):
    tags = span.get_tags()
    found = {
        "name": span.resource,
        "id": tags["celery.id"],
        "marks": [tags["mark"]] if "mark" in tags else [],
    }
    if span.error:
        report(
            "error",
            **found,
            exception=short(tags["error.type"]),
            message=tags["error.message"],
            frames=own_in_text(tags["error.stack"].splitlines()),
        )
    report(
        "transaction",
        **found,
        ended="error" if span.error else "ok",
        state=tags["celery.state"],
        reason=tags.get("celery.retry.reason"),
    )


def mark():
    tracer.current_span().set_tag("mark", "a tag")


patch(celery=True)
tracer.configure(trace_processors=[Reporter()])
