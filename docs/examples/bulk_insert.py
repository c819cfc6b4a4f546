"""Insert rows into a database in bulk: one transaction for a batch.

Start a worker in this directory, then run the program itself::

    celery -A bulk_insert worker --loglevel INFO
    python bulk_insert.py

The database is SQLite, in the file that DATABASE names.
"""

import os
import sqlite3
from contextlib import closing

from celery import Celery

from celery_batches import Batches

DATABASE = os.environ.get("DATABASE", "readings.db")

app = Celery("bulk_insert", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))


# With acks_late, messages are acknowledged after the commit. A message that is delivered again
# has the same id, which is the primary key here: its row is not inserted twice.
@app.task(base=Batches, flush_every=500, flush_interval=5, acks_late=True, ignore_result=True)
def save_reading(requests):
    rows = [(r.id, r.kwargs["sensor"], r.kwargs["value"]) for r in requests]
    with closing(sqlite3.connect(DATABASE)) as db, db:  # The second "db": one transaction.
        db.execute("CREATE TABLE IF NOT EXISTS reading (id TEXT PRIMARY KEY, sensor, value)")
        db.executemany("INSERT INTO reading VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING", rows)
    return len(rows)


# For PostgreSQL (psycopg 3) only the connection and the placeholders differ:
#
#     with psycopg.connect(DATABASE) as db:
#         db.cursor().executemany(
#             "INSERT INTO reading VALUES (%s, %s, %s) ON CONFLICT (id) DO NOTHING", rows
#         )


def main():
    for n in range(500):
        save_reading.delay(sensor=f"sensor-{n % 10}", value=n)


if __name__ == "__main__":
    main()
