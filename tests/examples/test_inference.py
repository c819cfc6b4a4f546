"""The example of model inference: a FastAPI app, and a worker that predicts many at a time."""

import asyncio
from threading import Semaphore

import httpx
import pytest
from celery import signals, states

from kit.examples import running_worker

#: Seconds that anything may take before a test gives up on it.
DEADLINE = 30
#: Longer than any test: a batch runs when it is full.
NEVER = 600


@pytest.fixture
def example(load):
    """The example, whose clients are patient, and whose batches run when they are full."""
    example = load("inference")
    example.PATIENCE = DEADLINE
    example.mood_of.flush_interval = NEVER
    yield example
    example.celery_thread.shutdown()


@pytest.fixture
def received():
    """Released for each call that the worker has received."""
    semaphore = Semaphore(0)

    def on_received(**_):
        semaphore.release()

    signals.task_received.connect(on_received)
    yield semaphore
    signals.task_received.disconnect(on_received)


async def is_received(received, count):
    for _ in range(count):
        assert await asyncio.to_thread(received.acquire, timeout=DEADLINE)


def client_of(example):
    transport = httpx.ASGITransport(app=example.api)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE)


def ask(client, text):
    return asyncio.ensure_future(client.get("/mood", params={"text": text}))


def test_many_clients_share_one_prediction(example):
    """32 clients at a time are one batch, and each gets the answer to its own text."""
    texts = [("lovely " * (n % 5)) + "day" for n in range(32)]

    async def ask_all():
        async with client_of(example) as client:
            return await asyncio.gather(*(ask(client, text) for text in texts))

    with running_worker(example.app) as runs:
        answers = asyncio.run(ask_all())
        assert [answer.json() for answer in answers] == [{"mood": n % 5 * 2} for n in range(32)]
        assert runs.get(timeout=DEADLINE) == (states.SUCCESS, [n % 5 * 2 for n in range(32)])
        assert runs.empty()


def test_a_text_that_is_refused_fails_its_client_alone(example):
    """The others of its batch get their answers."""
    example.mood_of.flush_every = 3

    async def ask_all():
        async with client_of(example) as client:
            return await asyncio.gather(*(ask(client, text) for text in ("good", " ", "awful")))

    with running_worker(example.app):
        good, empty, awful = asyncio.run(ask_all())
    assert (good.json(), awful.json()) == ({"mood": 1}, {"mood": -2})
    assert (empty.status_code, empty.json()) == (422, {"detail": "there is no text"})


def test_clients_that_wait_do_not_block_the_server(example, received):
    """More clients wait than there are threads, and the server answers another one meanwhile."""

    @example.api.get("/health")
    async def health():
        return "fine"

    async def ask_all():
        async with client_of(example) as client:
            waiting = [ask(client, "good") for _ in range(example.mood_of.flush_every - 1)]
            await is_received(received, len(waiting))
            assert (await client.get("/health")).json() == "fine"
            assert not any(task.done() for task in waiting)
            last = ask(client, "rain")
            return await asyncio.gather(*waiting, last)

    with running_worker(example.app):
        answers = asyncio.run(ask_all())
    assert [answer.json()["mood"] for answer in answers] == [1] * 31 + [-1]


def test_a_client_does_not_wait_for_ever(example):
    """Without a worker, it hears that the model is busy, and its call has an end too."""
    example.PATIENCE = 0.01

    async def ask_one():
        async with client_of(example) as client:
            return await ask(client, "good")

    answer = asyncio.run(ask_one())
    assert (answer.status_code, answer.json()) == (503, {"detail": "the model is busy"})
    with running_worker(example.app) as runs:
        example.mood_of.flush_every = 1
        in_time = example.mood_of.delay("lovely")
        assert in_time.get(timeout=DEADLINE, interval=0.01) == 2
        assert runs.get(timeout=DEADLINE) == (states.SUCCESS, [2])
        assert runs.empty()


def test_nothing_is_kept_of_an_answer(example):
    """Its result is deleted when its client has it."""
    example.mood_of.flush_every = 1
    ids = []

    def on_publish(headers, **_):
        ids.append(headers["id"])

    signals.before_task_publish.connect(on_publish)

    async def ask_one():
        async with client_of(example) as client:
            return await ask(client, "lovely")

    with running_worker(example.app):
        assert asyncio.run(ask_one()).json() == {"mood": 2}
        example.celery_thread.shutdown()
        assert example.app.AsyncResult(ids[0]).state == states.PENDING
