"""Count clicks per URL: one line of output for a URL, however many clicks it had.

Start a worker in this directory, then call the task from a second terminal::

    celery -A click_counter worker --loglevel INFO
    python click_counter.py

The broker is Redis on this machine, or what CELERY_BROKER_URL says (Celery reads it).
"""

from collections import Counter

from celery import Celery

from celery_batches import Batches

app = Celery("click_counter", broker="redis://localhost")


@app.task(base=Batches, flush_every=100, flush_interval=10, ignore_result=True)
def count_click(requests):
    clicks = Counter(request.kwargs["url"] for request in requests)
    for url, count in clicks.most_common():
        print(f"{count:3} clicks on {url}")


def main():
    for n in range(100):
        count_click.delay(url="/about" if n % 4 == 0 else "/home")


if __name__ == "__main__":
    main()
