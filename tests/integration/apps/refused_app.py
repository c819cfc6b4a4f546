"""A task that is refused when it is defined: the one that the environment names."""

import os

from celery import Celery

from celery_batches import Batches

app = Celery("refused")
app.config_from_object("celeryconfig")


def generator(requests):
    yield


async def async_generator(requests):
    yield


def no_parameter():
    pass


def fine(requests):
    pass


BODIES = {
    "generator": (generator, {}),
    "async generator": (async_generator, {}),
    "no parameter": (no_parameter, {}),
    "flush_intervall": (fine, {"flush_intervall": 5}),
    "batch_size": (fine, {"batch_size": 100}),
    "flush_timeout": (fine, {"flush_timeout": 5}),
    "rate_limit": (fine, {"rate_limit": "ten"}),
}

if os.environ.get("REFUSED"):
    body, options = BODIES[os.environ["REFUSED"]]
    app.task(base=Batches, name="refused", **options)(body)
