"""New Relic in developer mode, where nothing is sent; its own way to wrap shows what it keeps."""

import os

os.environ.update(
    NEW_RELIC_DEVELOPER_MODE="true",
    NEW_RELIC_LICENSE_KEY="0" * 40,
    NEW_RELIC_APP_NAME="tools",
    NEW_RELIC_STARTUP_TIMEOUT="30",  # A process waits so long at most until it records.
)

import newrelic.agent
from reporting import report

from . import own_in_text, short


def record(wrapped, instance, args, kwargs):
    transaction = args[0]
    said = {attribute.name: attribute.value for attribute in transaction.user_attributes}
    found = {"name": transaction.path, "marks": [said["mark"]] if "mark" in said else []}
    for error in transaction.errors:
        report(
            "error",
            **found,
            exception=short(error.type),
            message=error.message,
            frames=own_in_text(error.stack_trace),
        )
    report("transaction", **found, ended="errors" if transaction.errors else "ok")
    return wrapped(*args, **kwargs)


def mark():
    newrelic.agent.add_custom_attribute("mark", "an attribute")


newrelic.agent.wrap_function_wrapper(
    "newrelic.core.stats_engine", "StatsEngine.record_transaction", record
)
newrelic.agent.initialize()
