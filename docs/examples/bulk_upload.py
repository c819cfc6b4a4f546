"""Send documents to a search index in bulk requests of at most a megabyte.

Start a worker in this directory, then run the program itself::

    celery -A bulk_upload worker --loglevel INFO
    python bulk_upload.py
"""

import json
import os

from celery import Celery

from celery_batches import Batches

app = Celery("bulk_upload", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))


def post(body):
    """Stand in for the request to the index."""
    print(f"POST /_bulk {len(body)} bytes")


@app.task(
    base=Batches,
    flush_every=1000,
    flush_interval=5,
    flush_weight="bytes",
    flush_max_weight=1_000_000,
    ignore_result=True,
)
def index(requests):
    post("\n".join(json.dumps(r.kwargs["document"]) for r in requests))


def main():
    for number in range(100):
        index.delay(document={"number": number, "text": "word " * 10_000})


if __name__ == "__main__":
    main()
