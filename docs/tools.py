"""What monitoring tools record of a batch: the table that the documentation prints.

`tests/integration/test_tools.py` runs each tool in a worker, and holds it to each of these facts.
"""

from typing import NamedTuple


class Tool(NamedTuple):
    """A tool that watches tasks from inside the worker."""

    module: str  # Its set-up, in tests/integration/apps/tools.
    title: str
    record: str = ""  # What it calls its record of one run of a task; empty if it keeps none.
    name: str = ""  # How that is named: TASK is the name of the task, FUNCTION its function.
    keeps: str = ""  # What a body can add to the record.
    needs: str = ""  # What its users add to a worker, for tasks of any kind.
    single: bool = False  # Whether it reports each request that fails alone.
    reason: bool = False  # Whether it notes why an ordinary task is retried.
    retry_is_error: bool = False  # Whether it takes a retry for an error.
    logs_retry: bool = False  # Whether it logs each retry.

    @property
    def recorded(self) -> str:
        return f"One {self.record}, ``{self.name}``" if self.record else "Nothing"

    @property
    def reported(self) -> str:
        return "One for the batch" + (", one for each request that fails alone" * self.single)

    @property
    def notes(self) -> str:
        known = {
            f"{self.needs}, as for ordinary tasks.": self.needs,
            f"{self.keeps} of one batch do not reach the next.": self.keeps,
            "The record of a retried batch lacks ``celery.retry.reason``.": self.reason,
            "A retry counts as an error, as for an ordinary task.": self.retry_is_error,
            "``task_retrying`` is logged for each request.": self.logs_retry,
        }
        return " ".join(note for note, applies in known.items() if applies)


TOOLS = [
    Tool("sentry", "Sentry", "transaction", "TASK", "User, tags and breadcrumbs"),
    Tool(
        "new_relic",
        "New Relic",
        "transaction",
        "OtherTransaction/Celery/TASK",
        "Custom attributes",
        retry_is_error=True,
    ),
    Tool(
        "opentelemetry",
        "OpenTelemetry",
        "span",
        "run/TASK",
        "Attributes and baggage",
        reason=True,
    ),
    Tool("datadog", "Datadog", "span", "TASK", "Tags", reason=True),
    Tool("elastic", "Elastic APM", "transaction", "FUNCTION", "User and labels", single=True),
    Tool(
        "rollbar",
        "Rollbar",
        needs="Connect ``rollbar.report_exc_info`` to ``task_failure``",
        single=True,
    ),
    Tool(
        "structlog",
        "django-structlog",
        "``task_started``",
        "TASK",
        "Bound variables",
        single=True,
        logs_retry=True,
    ),
]


def as_rst() -> str:
    """Return the table as reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 16 28 26 30", ""]
    cells = [("Tool", "Recorded for a batch", "Error reports", "Good to know")]
    cells += [(tool.title, tool.recorded, tool.reported, tool.notes) for tool in TOOLS]
    for first, *others in cells:
        lines += [f"   * - {first}", *(f"     - {other}".rstrip() for other in others)]
    return "\n".join(lines) + "\n"
