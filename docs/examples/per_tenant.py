"""Write the rows of each tenant with one connection to that tenant's database.

Start a worker in this directory, then run the program itself::

    celery -A per_tenant worker --loglevel INFO
    python per_tenant.py
"""

import os
import sqlite3
from contextlib import closing

from celery import Celery

from celery_batches import Batches

DIRECTORY = os.environ.get("DIRECTORY", ".")

app = Celery("per_tenant", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))


@app.task(base=Batches, flush_every=200, flush_interval=5, flush_key="tenant", ignore_result=True)
def import_rows(requests):
    tenant = requests[0].kwargs["tenant"]  # The same in all of them.
    with closing(sqlite3.connect(f"{DIRECTORY}/{tenant}.db")) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS row (id TEXT PRIMARY KEY, value)")
        rows = [(r.id, r.kwargs["value"]) for r in requests]
        db.executemany("INSERT OR IGNORE INTO row VALUES (?, ?)", rows)
    return f"{len(rows)} rows of {tenant}"


def main():
    for value in range(1000):
        import_rows.delay(tenant=f"tenant-{value % 3}", value=value)


if __name__ == "__main__":
    main()
