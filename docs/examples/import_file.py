"""Sends a call for each line of a file."""

import csv
import os

from celery import Celery

from celery_batches import Batches, SendError

app = Celery("import_file", broker=os.environ.get("CELERY_BROKER_URL", "redis://"))

stored = []


@app.task(base=Batches, flush_every=100, flush_interval=1, ignore_result=True)
def store_row(requests):
    # One INSERT for up to a hundred lines.
    stored.extend(tuple(request.args) for request in requests)


def import_file(path):
    with open(path, newline="") as file:
        store_row.delay_many(csv.reader(file))


def import_safely(path):
    with open(path, newline="") as file:
        rows = csv.reader(file)
        try:
            store_row.delay_many(rows)
        except SendError as error:
            # With the same ids. What is sent twice has the same id twice.
            store_row.apply_async_many([*error.uncertain, *error.unsent])
            # The rest of the file.
            store_row.delay_many(rows)
