"""Remember when each user was last seen: one write for a user, however often they came by.

Start a worker in this directory, then run the program itself::

    celery -A last_seen worker --loglevel INFO
    python last_seen.py
"""

import os
import sqlite3
import time
from contextlib import closing

from celery import Celery

from celery_batches import Batches

DATABASE = os.environ.get("DATABASE", "last_seen.db")

app = Celery("last_seen", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))


@app.task(base=Batches, flush_every=200, flush_interval=5, ignore_result=True)
def seen(requests):
    latest = {}
    for request in requests:
        user, at = request.args
        latest[user] = max(at, latest.get(user, at))
    save(latest)
    return f"{len(requests)} calls, {len(latest)} users"


def save(latest):
    with closing(sqlite3.connect(DATABASE)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS last_seen (user TEXT PRIMARY KEY, at REAL)")
        # Messages may arrive out of order: an older time never replaces a newer one.
        db.executemany(
            "INSERT INTO last_seen VALUES (?, ?)"
            " ON CONFLICT (user) DO UPDATE SET at = max(at, excluded.at)",
            latest.items(),
        )


def main():
    for n in range(200):
        seen.delay(f"user-{n % 3}", time.time())


if __name__ == "__main__":
    main()
