"""Leave calls out of a batch before it goes to the pool: clicks of bots are not counted.

Start a worker in this directory, then run the program itself::

    celery -A without_bots worker --loglevel INFO
    python without_bots.py
"""

import os
from collections import Counter

from celery import Celery

from celery_batches import Batches

BOTS = {"crawler", "monitor"}

app = Celery("without_bots", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))


class WithoutBots(Batches):
    abstract = True

    def flush(self, requests):
        wanted = []
        for request in requests:
            if request.kwargs["agent"] in BOTS:
                request.acknowledge()  # Or request.reject(), for a dead-letter exchange.
            else:
                wanted.append(request)
        return super().flush(wanted)


@app.task(base=WithoutBots, flush_every=100, flush_interval=10, ignore_result=True)
def count_click(requests):
    clicks = Counter(request.kwargs["url"] for request in requests)
    return f"{len(requests)} clicks: {dict(clicks)}"


def main():
    for n in range(100):
        agent = "crawler" if n % 5 == 0 else "browser"
        count_click.delay(url="/home" if n % 2 else "/about", agent=agent)


if __name__ == "__main__":
    main()
