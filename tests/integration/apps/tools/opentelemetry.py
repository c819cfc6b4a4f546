"""OpenTelemetry: the instrumentation of Celery, and an exporter of ours that gets the spans."""

from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from reporting import report

from . import own_in_text


class Reporter(SpanExporter):
    def export(self, spans):
        for span in spans:
            if span.kind is trace.SpanKind.CONSUMER:
                report_span(span)
        return SpanExportResult.SUCCESS


class Processor(SimpleSpanProcessor):
    """Notes what is in the baggage when a span begins."""

    def on_start(self, span, parent_context=None):
        span.set_attribute("carried", list(baggage.get_all(parent_context)))


def report_span(span):
    attributes = span.attributes
    found = {
        "name": span.name,
        "id": attributes["messaging.message.id"],
        "marks": [*attributes["carried"], *filter(None, [attributes.get("mark")])],
    }
    for event in span.events:
        report(
            "error",
            **found,
            exception=event.attributes["exception.type"],
            message=event.attributes["exception.message"],
            frames=own_in_text(event.attributes["exception.stacktrace"].splitlines()),
        )
    report(
        "transaction",
        **found,
        ended=span.status.status_code.name,
        state=attributes["celery.state"],
        reason=attributes.get("celery.retry.reason"),
    )


def mark():
    trace.get_current_span().set_attribute("mark", "an attribute")
    context.attach(baggage.set_baggage("baggage", "x"))  # Nobody detaches it.


provider = TracerProvider()
provider.add_span_processor(Processor(Reporter()))
CeleryInstrumentor().instrument(tracer_provider=provider)
