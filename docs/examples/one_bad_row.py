"""Insert rows into PostgreSQL in bulk: one bad row fails its call, and the rest are stored.

Make the table, start a worker in this directory, then run the program itself::

    psql -c "CREATE TABLE person (name VARCHAR(20) PRIMARY KEY)"
    celery -A one_bad_row worker --loglevel INFO
    python one_bad_row.py
"""

import os

import psycopg
from celery import Celery

from celery_batches import Batches

DATABASE = os.environ.get("DATABASE", "postgresql://localhost/postgres")

app = Celery(
    "one_bad_row",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost"),
)


@app.task(
    base=Batches,
    flush_every=20,
    flush_interval=5,
    return_results=True,
    bisect_on_failure=psycopg.DataError,
)
def save_person(requests):
    with psycopg.connect(DATABASE) as db:  # Commits at the end. Rolls back if a row is refused.
        db.cursor().executemany("INSERT INTO person (name) VALUES (%s)", [r.args for r in requests])
    return [None] * len(requests)


def main():
    names = [f"person {number}" for number in range(19)]
    calls = [save_person.delay(name) for name in [*names, "a name that is far too long"]]
    for call in calls:
        try:
            call.get(timeout=30)
        except psycopg.DataError as exc:
            print(f"refused: {exc}")
    print(f"{sum(call.successful() for call in calls)} of {len(calls)} are stored")


if __name__ == "__main__":
    main()
