"""Ask an HTTP API that answers for one article at a time: all requests of a batch at once.

Start a worker in this directory, then run the program itself::

    pip install httpx
    STOCK_API=https://stock.example.com celery -A stock worker --loglevel INFO
    python stock.py

The API answers ``GET /tea`` with the number of packets in stock.
"""

import asyncio
import os
from weakref import WeakKeyDictionary

import httpx
from celery import Celery

from celery_batches import Batches

STOCK_API = os.environ.get("STOCK_API", "http://localhost:8000")

app = Celery(
    "stock",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost"),
)

#: The generator of each event loop, with the client that it holds open.
clients = WeakKeyDictionary()


async def open_client():
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=STOCK_API, limits=limits) as client:
        yield client
        # When the worker ends, the event loop ends this generator, which closes the client.


async def kept_client():
    """Return the client of this event loop, which the first batch opens."""
    loop = asyncio.get_running_loop()
    if loop not in clients:
        generator = open_client()
        clients[loop] = generator, await anext(generator)
    return clients[loop][1]


@app.task(
    base=Batches,
    flush_every=100,
    flush_interval=1,
    return_results=True,
    autoretry_for=(httpx.TransportError,),
)
async def in_stock(requests):
    client = await kept_client()
    lookups = [look_up(client, *request.args) for request in requests]
    # An exception fails its call, or retries it by `autoretry_for`. The other calls succeed.
    return await asyncio.gather(*lookups, return_exceptions=True)


async def look_up(client, article):
    response = await client.get(f"/{article}")
    if response.status_code != 200:
        raise LookupError(f"no {article}: {response.status_code}")
    return response.json()


def main():
    results = [(article, in_stock.delay(article)) for article in ("tea", "milk", "gold")]
    for article, result in results:
        print(article, result.get(timeout=30, propagate=False))


if __name__ == "__main__":
    main()
