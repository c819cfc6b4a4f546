"""Many batch tasks, and a command that says what the worker's main process holds on to."""

from __future__ import annotations

import gc
from typing import Any

import recording
from celery import Celery, signals
from celery.worker import state as worker_state
from celery.worker.control import inspect_command
from celery.worker.request import Request

from celery_batches import Batches
from celery_batches.worker.job import BatchJob

SETTINGS = recording.SETTINGS

app = Celery("soak")
app.config_from_object("celeryconfig")
recording.watch(signals)


def body(requests: list[Any]) -> None:
    recording.record_body(len(requests))


for name in SETTINGS["tasks"]:
    app.task(
        name=name,
        base=Batches,
        flush_every=SETTINGS["flush_every"],
        flush_interval=SETTINGS["flush_interval"],
        acks_late=SETTINGS["acks_late"],
        ignore_result=True,
    )(body)


@inspect_command()  # type: ignore[untyped-decorator]  # celery is not typed
def soak_state(state: Any, **_: Any) -> dict[str, int]:
    """How many there are of all that could grow. What is garbage is not counted."""
    gc.collect()
    objects = gc.get_objects()
    return {
        "timers": len(state.consumer.timer.queue),
        "requests": len(worker_state.requests),
        "reserved": len(worker_state.reserved_requests),
        "active": len(worker_state.active_requests),
        "request objects": sum(isinstance(one, Request) for one in objects),
        "batch objects": sum(isinstance(one, BatchJob) for one in objects),
        "prefetch": state.consumer.qos.value,
    }
