"""When the message of a request is acknowledged: the table that the documentation prints.

`tests/unit/test_ack_table.py` makes each cell happen, with Celery's own ``Request``.
"""

from typing import Any, NamedTuple

ACK, REJECT, REQUEUE = "acknowledged", "rejected", "requeued"

#: Early acknowledgement, the default, tells the broker this before the body runs.
EARLY = ACK


class Row(NamedTuple):
    """What the worker tells the broker about a message with ``acks_late``."""

    ending: str  # How the request ends; the name of a way in the tests.
    says: str  # The same, for the table.
    options: dict[str, Any]  # Options of the task, beside acks_late.
    message: str  # What the worker tells the broker.
    since: str = ""  # The Celery versions that know the options.


BOTH = "acks_on_failure_or_timeout"
ROWS = [
    Row("done", "done", {}, ACK),
    Row("unmarked", "unmarked when the body returns", {}, ACK),
    Row("failed", "failed alone", {}, ACK),
    Row("failed", "failed alone", {BOTH: False}, REJECT),
    Row("failed", "failed alone", {"acks_on_failure": False}, REJECT, "5.7"),
    Row("raised", "failed because the body raised", {}, ACK),
    Row("raised", "failed because the body raised", {BOTH: False}, REJECT),
    Row("raised", "failed because the body raised", {"acks_on_failure": False}, REJECT, "5.7"),
    Row("retried", "retried", {}, ACK),
    Row("exhausted", "failed with its retries exhausted", {}, ACK),
    Row("exhausted", "failed with its retries exhausted", {BOTH: False}, REJECT),
    Row("rejected", "rejected with ``requeue=False``", {}, REJECT),
    Row("requeued", "rejected with ``requeue=True``", {}, REQUEUE),
    Row("ignored", "ignored because the body raised ``Ignore``", {}, ACK),
    Row("timeout", "over the hard time limit", {}, ACK),
    Row("timeout", "over the hard time limit", {BOTH: False}, REJECT, "before 5.7"),
    Row("timeout", "over the hard time limit", {BOTH: False}, REQUEUE, "5.7"),
    Row("timeout", "over the hard time limit", {"acks_on_timeout": False}, REQUEUE, "5.7"),
    Row("lost", "in a pool process that was lost", {}, ACK),
    Row("lost", "in a pool process that was lost", {BOTH: False}, REJECT),
    Row("lost", "in a pool process that was lost", {"reject_on_worker_lost": True}, REQUEUE),
    Row("lost", "in a pool process that was lost", {"retry_on_worker_lost": True}, ACK, "5.7"),
    Row("terminated", "terminated by ``revoke(terminate=True)``", {}, ACK),
    Row("neighbour", "in a batch with a terminated request", {}, ACK),
    Row(
        "neighbour",
        "in a batch with a terminated request",
        {"reject_on_worker_lost": True},
        REQUEUE,
    ),
    Row("revoked", "revoked or expired before it ran", {}, ACK),
    Row("unreadable", "malformed: its headers cannot be used", {}, REJECT),
]

#: These never reach the pool, so early acknowledgement does not apply to them.
NOT_EARLY = {"revoked": ACK, "unreadable": REJECT}


def as_rst() -> str:
    """Return the table as reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 34 36 15 15", ""]
    titles = ("The request is", "Options", "Without ``acks_late``", "With ``acks_late``")
    early = {row.ending: NOT_EARLY.get(row.ending, EARLY) for row in ROWS}
    cells = [titles]
    for row in ROWS:
        options = ", ".join(f"``{name}={value}``" for name, value in row.options.items())
        since = f" (Celery {row.since})" if row.since else ""
        cells.append((row.says, (options or "default") + since, early[row.ending], row.message))
    for first, *others in cells:
        lines += [f"   * - {first}", *(f"     - {other}" for other in others)]
    return "\n".join(lines) + "\n"
