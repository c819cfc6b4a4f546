"""Look up prices with a bulk HTTP API: one request to the API for a batch, a result for each call.

Start a worker in this directory, then run the program itself::

    PRICE_API=https://prices.example.com/bulk celery -A bulk_api worker --loglevel INFO
    python bulk_api.py

The API takes a JSON list of articles and returns a JSON object with their prices.
"""

import json
import os
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from celery import Celery

from celery_batches import Batches

PRICE_API = os.environ.get("PRICE_API", "http://localhost:8000/")

app = Celery(
    "bulk_api",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost"),
)


@app.task(base=Batches, flush_every=50, flush_interval=1)
def price_of(requests):
    prices = fetch_prices({request.args[0] for request in requests})
    for request in requests:
        price = prices.get(request.args[0])
        app.backend.mark_as_done(request.id, price, request=request)


def fetch_prices(articles):
    body = json.dumps(sorted(articles)).encode()
    query = Request(PRICE_API, body, {"Content-Type": "application/json"})
    try:
        with urlopen(query, timeout=10) as response:
            return json.load(response)
    except HTTPError as error:
        # It cannot be pickled, so its message would be lost on the way to the caller.
        with error:
            raise RuntimeError(f"No prices: {error}") from None


def main():
    results = [(article, price_of.delay(article)) for article in ("tea", "milk", "tea")]
    for article, result in results:
        print(article, result.get(timeout=30))


if __name__ == "__main__":
    main()
