"""The app of the demo: the same job as a batch task and as an ordinary one.

`demo.py` starts the worker for it, and says by environment variables where everything is.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import after_task_publish

from celery_batches import Batches, SimpleRequest

DIRECTORY = Path(os.environ["DEMO_DIRECTORY"])
DATABASE = DIRECTORY / "clicks.sqlite"
OUTBOX, INBOX = DIRECTORY / "outbox", DIRECTORY / "inbox"
BROKER = os.environ.get("BROKER") or "filesystem://"

app = Celery("clicks", broker=BROKER)
app.conf.update(
    # A queue of its own, for a broker that others use as well; for the same reason no remote
    # control, which would leave its exchanges behind there. The rest is as Celery comes.
    task_default_queue=os.environ["DEMO_QUEUE"],
    worker_enable_remote_control=False,
)
if BROKER.startswith("filesystem:"):
    # Each message is a file. Nothing tells the worker of a new one: it looks, every so often.
    app.conf.broker_transport_options = {
        "data_folder_in": str(INBOX),
        "data_folder_out": str(OUTBOX),
        "control_folder": str(DIRECTORY / "control"),
        "polling_interval": 0.05,
    }

    @after_task_publish.connect
    def deliver(**_: Any) -> None:
        """Move a message to where the worker looks, now that it is written.

        kombu's reader does not wait for its writer's lock: in one directory for both, the worker
        can get hold of a message that is still empty, and ends.
        """
        for message in OUTBOX.iterdir():
            message.rename(INBOX / message.name)


@app.task(base=Batches, flush_every=100, flush_interval=1)
def count_clicks(requests: list[SimpleRequest]) -> str:
    """Many calls, one transaction."""
    counts = Counter(request.args[0] for request in requests)
    save("batch", counts)
    return f"{len(counts)} rows"


@app.task
def count_click(url: str) -> None:
    """One call, one transaction."""
    save("ordinary", {url: 1})


def save(job: str, counts: Mapping[str, int]) -> None:
    rows = [(job, url, count) for url, count in counts.items()]
    with closing(sqlite3.connect(DATABASE, timeout=30, isolation_level=None)) as database:
        # Two pool processes write: take the lock at the start, not half-way.
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT INTO clicks (job, url, count) VALUES (?, ?, ?)"
            " ON CONFLICT (job, url) DO UPDATE SET count = count + excluded.count",
            rows,
        )
        database.execute("COMMIT")


def create_files() -> None:
    OUTBOX.mkdir()
    INBOX.mkdir()
    with closing(sqlite3.connect(DATABASE)) as database, database:
        database.execute("CREATE TABLE clicks (job, url, count, PRIMARY KEY (job, url))")


def saved(job: str) -> Counter[str]:
    with closing(sqlite3.connect(DATABASE, timeout=30)) as database:
        rows = database.execute("SELECT url, count FROM clicks WHERE job = ?", (job,))
        return Counter(dict(rows.fetchall()))
