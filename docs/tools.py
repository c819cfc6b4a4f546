"""What monitoring tools record of a batch: the table that the documentation prints.

`tests/integration/test_tools.py` runs each tool in a worker, and holds it to each of these facts.
"""

from typing import NamedTuple

ERROR = "One when the body raises, one when retries are exhausted"


class Tool(NamedTuple):
    """A tool that watches tasks from inside the worker."""

    module: str  # Its set-up, in tests/integration/apps/tools.
    title: str
    thing: str  # What it calls its record of one run of a task; empty if it keeps none.
    name: str  # How that is named, with TASK for the name of the task.
    lone: bool  # Whether it reports each request that fails by itself.
    reason: bool  # Whether it notes the reason of a retry, which an ordinary task has.
    know: str


TOOLS = [
    Tool("sentry", "Sentry", "transaction", "TASK", False, False, "User, tags and breadcrumbs are those of the batch."),
    Tool("new_relic", "New Relic", "transaction", "OtherTransaction/Celery/TASK", False, False, "A retry counts as an error, as for an ordinary task."),
    Tool("opentelemetry", "OpenTelemetry", "span", "run/TASK", False, True, ""),
    Tool("datadog", "Datadog", "span", "TASK", False, True, ""),
    Tool("elastic", "Elastic APM", "transaction", "tools_app.TASK", True, False, ""),
    Tool("rollbar", "Rollbar", "", "", True, False, ""),
    Tool("structlog", "django-structlog", "``task_started`` event", "TASK", True, False, ""),
]
