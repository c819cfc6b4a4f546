"""Run single calls of a batch again, a few times at most.

Start a worker in this directory, then run the program itself::

    celery -A try_again worker --loglevel INFO
    python try_again.py
"""

import os

from celery import Celery

from celery_batches import Batches

app = Celery(
    "try_again",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost"),
)


@app.task(base=Batches, flush_every=100, flush_interval=1)
def halve(requests):
    for request in requests:
        try:
            half = work(*request.args, retries=request.retries)
        except ConnectionError as error:
            request.retry(exc=error, countdown=0.5, max_retries=3)
        else:
            request.mark_as_done(half)


def work(number, *, retries):
    """Stand in for a service that is down at first."""
    if number < 0 or retries < 1:
        raise ConnectionError("try again later")
    return number / 2


def main():
    print(halve.delay(6).get(timeout=30))


if __name__ == "__main__":
    main()
