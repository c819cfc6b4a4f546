"""A batch task that does nothing: for this package and for the original alike."""

from __future__ import annotations

from typing import Any

import recording
from celery import Celery, signals

from celery_batches import Batches

SETTINGS = recording.SETTINGS

app = Celery("bench")
app.config_from_object("celeryconfig")
recording.watch(signals)


def mark_on_request(requests: list[Any]) -> None:
    for request in requests:
        request.mark_as_done("ok")


def mark_in_backend(requests: list[Any]) -> None:
    """As the documentation of the original says."""
    for request in requests:
        app.backend.mark_as_done(request.id, "ok", request=request)


MARKS = {"request": mark_on_request, "backend": mark_in_backend}


@app.task(  # type: ignore[untyped-decorator]  # celery is not typed
    name="bench.task",
    base=Batches,
    flush_every=SETTINGS["flush_every"],
    flush_interval=SETTINGS["flush_interval"],
    acks_late=SETTINGS["acks_late"],
    ignore_result=not SETTINGS["results"],
)
def task(requests: list[Any]) -> None:
    if SETTINGS["stamped"]:
        recording.record_waits([request.args[0] for request in requests])
    if SETTINGS["results"]:
        MARKS[SETTINGS["marks"]](requests)
    recording.record_body(len(requests))
