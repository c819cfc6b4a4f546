"""When the message of a request is acknowledged: the table that the documentation prints.

`tests/unit/test_ack_table.py` makes each cell happen, with Celery's own ``Request``.
"""

from typing import Any, NamedTuple

ACK, REJECT, REQUEUE = "acknowledged", "rejected", "requeued"

#: With early acknowledgement, the default, this is the end of the story.
EARLY = ACK


class Row(NamedTuple):
    """What becomes of the message with ``acks_late``."""

    ending: str  # How the request ends; the name of a way in the tests.
    says: str  # The same in words.
    options: dict[str, Any]  # Options of the task, beside acks_late.
    message: str  # What the broker is told.
    since: str = ""  # The first Celery that knows the options.


BOTH = "acks_on_failure_or_timeout"
ROWS = [
    Row("done", "done", {}, ACK),
    Row("unmarked", "not mentioned by a body that returns", {}, ACK),
    Row("failed", "failed, by itself", {}, ACK),
    Row("failed", "failed, by itself", {BOTH: False}, REJECT),
    Row("failed", "failed, by itself", {"acks_on_failure": False}, REJECT, "5.7"),
    Row("raised", "failed, since the body raised", {}, ACK),
    Row("raised", "failed, since the body raised", {BOTH: False}, REJECT),
    Row("raised", "failed, since the body raised", {"acks_on_failure": False}, REJECT, "5.7"),
    Row("retried", "retried", {}, ACK),
    Row("exhausted", "retried too often", {}, ACK),
    Row("exhausted", "retried too often", {BOTH: False}, REJECT),
    Row("rejected", "rejected with ``requeue=False``", {}, REJECT),
    Row("requeued", "rejected with ``requeue=True``", {}, REQUEUE),
    Row("ignored", "ignored, since the body raised ``Ignore``", {}, ACK),
    Row("timeout", "hard time limit exceeded", {}, ACK),
    Row("timeout", "hard time limit exceeded", {BOTH: False}, REJECT, "before 5.7"),
    Row("timeout", "hard time limit exceeded", {BOTH: False}, REQUEUE, "5.7"),
    Row("timeout", "hard time limit exceeded", {"acks_on_timeout": False}, REQUEUE, "5.7"),
    Row("lost", "lost with its pool process", {}, ACK),
    Row("lost", "lost with its pool process", {BOTH: False}, REJECT),
    Row("lost", "lost with its pool process", {"reject_on_worker_lost": True}, REQUEUE),
    Row("lost", "lost with its pool process", {"retry_on_worker_lost": True}, ACK, "5.7"),
    Row("terminated", "terminated by ``revoke(terminate=True)``", {}, ACK),
    Row("neighbour", "in a batch with a terminated request", {}, ACK),
    Row(
        "neighbour",
        "in a batch with a terminated request",
        {"reject_on_worker_lost": True},
        REQUEUE,
    ),
    Row("revoked", "revoked or expired before it ran", {}, ACK),
    Row("unreadable", "with headers that make no sense", {}, REJECT),
]

#: With early acknowledgement these are told otherwise: they never got to the pool.
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
