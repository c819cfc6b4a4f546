"""Answer HTTP requests with a model that predicts many inputs in little more time than one.

Start a worker in this directory, then the web server, then ask it::

    pip install fastapi uvicorn
    celery -A inference worker --loglevel INFO
    uvicorn inference:api
    curl "http://localhost:8000/mood?text=what+a+lovely+day"
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from celery import Celery
from fastapi import FastAPI, HTTPException

from celery_batches import Batches

#: Seconds that a client waits at most.
PATIENCE = 5

app = Celery(
    "inference",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost"),
)
api = FastAPI()


class MoodModel:
    """Stand in for a model that takes long to load, and is best at many inputs at a time."""

    WORDS = {"lovely": 2, "good": 1, "rain": -1, "awful": -2}  # noqa: RUF012 - read only

    def predict(self, texts):
        return [sum(self.WORDS.get(word, 0) for word in text.split()) for text in texts]


@cache
def load_model():
    """Load the model once in each process of the pool, when the first batch needs it."""
    return MoodModel()


# The task.
@app.task(base=Batches, flush_every=32, flush_interval=0.02, return_results=True)
def mood_of(requests):
    texts = [request.args[0] for request in requests]
    scores = load_model().predict(texts)
    return [
        score if text.strip() else ValueError("there is no text")
        for text, score in zip(texts, scores, strict=True)
    ]


# The web server.
@api.get("/mood")
async def mood(text: str):
    try:
        return {"mood": await result_of(mood_of, text)}
    except ValueError as exc:
        raise HTTPException(422, str(exc)) from exc
    except asyncio.TimeoutError as exc:
        raise HTTPException(503, "the model is busy") from exc


# Calls of Celery may block. One thread makes all of them, one after the other.
celery_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="celery")


async def in_celery_thread(function, *args, **kwargs):
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(celery_thread, partial(function, *args, **kwargs))


async def result_of(task, *args):
    """Call a task, and wait for its result while the event loop does other things."""
    # What nobody waits for any more does not run.
    call = await in_celery_thread(task.apply_async, args, expires=PATIENCE)
    try:
        return await asyncio.wait_for(wait_for(call), PATIENCE)
    finally:
        celery_thread.submit(call.forget)  # Frees what the result backend keeps for the call.


async def wait_for(call):
    while not await in_celery_thread(call.ready):
        await asyncio.sleep(0.01)
    return await in_celery_thread(call.get)
