"""Batch tasks with ``async def`` bodies."""

import asyncio
import os
import threading
from weakref import WeakKeyDictionary

import httpx
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from reporting import report

from celery_batches import Batches

app = Celery("async")
app.config_from_object("celeryconfig")

clients = WeakKeyDictionary()


def me():
    """This thread of this process."""
    return f"{os.getpid()}-{threading.get_ident()}"


async def open_client():
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=None)
    server = os.environ["SERVER"]
    client = httpx.AsyncClient(base_url=server, limits=limits, timeout=30)
    report("opened", me=me())
    try:
        async with client:
            yield client
    finally:
        report("closed", me=me())


async def kept_client():
    loop = asyncio.get_running_loop()
    if loop not in clients:
        generator = open_client()
        clients[loop] = generator, await anext(generator)
    return clients[loop][1]


@app.task(base=Batches, flush_every=100, flush_interval=600, return_results=True)
async def fetch(requests):
    client = await kept_client()

    async def one(request):
        response = await client.get("/", headers={"X-Me": me(), "X-Batch": requests[0].id})
        return response.json() + request.args[0]

    return await asyncio.gather(*map(one, requests))


PAIRS = {"base": Batches, "flush_every": 2, "flush_interval": 600}


@app.task(soft_time_limit=1, bind=True, **PAIRS)
async def hang(self, requests):
    """Be told of the limit while it waits, and wait once more."""
    loop = asyncio.get_running_loop()
    report("hang", loop=id(loop), id=self.request.id)
    requests[0].mark_as_done("first")
    try:
        await asyncio.gather(asyncio.sleep(600), asyncio.Event().wait())
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0)
        report("told", loop=id(loop), id=self.request.id)
        raise


@app.task(soft_time_limit=1, **PAIRS)
async def block(requests):
    """Block the loop."""
    threading.Event().wait()


@app.task(**PAIRS)
async def gated(requests):
    report("gated")
    with await asyncio.to_thread(open, "go") as gate:  # A FIFO: it opens with the test's end.
        await asyncio.to_thread(gate.read)
    await kept_client()
    for request in requests:
        request.mark_as_done("finished")
