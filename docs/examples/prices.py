"""Give each caller its own result, with one look-up for all calls of a batch.

Start a worker in this directory, then run the program itself::

    celery -A prices worker --loglevel INFO
    python prices.py
"""

from celery import Celery

from celery_batches import Batches

app = Celery("prices", broker="redis://localhost", backend="redis://localhost")


@app.task(base=Batches, flush_every=50, flush_interval=1)
def price_of(requests):
    prices = fetch_prices({request.args[0] for request in requests})
    for request in requests:
        article = request.args[0]
        if article in prices:
            request.mark_as_done(prices[article])
        else:
            request.mark_as_failure(LookupError(f"no price for {article}"))


def fetch_prices(articles):
    """Stand in for one query to a database or an API."""
    print(f"one query for {len(articles)} articles")
    prices = {"milk": 1, "tea": 3}
    return {article: prices[article] for article in articles if article in prices}


def main():
    articles = ["tea", "milk", "tea", "gold"]
    calls = [price_of.delay(article) for article in articles]
    for article, call in zip(articles, calls, strict=True):
        price = call.get(timeout=30, propagate=False)
        print(f"{article}: {price!r}")


if __name__ == "__main__":
    main()
