"""An ordinary Celery task that does nothing."""

from __future__ import annotations

import recording
from celery import Celery, signals

SETTINGS = recording.SETTINGS

app = Celery("bench")
app.config_from_object("celeryconfig")
recording.watch(signals)


@app.task(  # type: ignore[untyped-decorator]  # celery is not typed
    name="bench.task",
    acks_late=SETTINGS["acks_late"],
    ignore_result=not SETTINGS["results"],
)
def task(sent: float, padding: str) -> str:
    if SETTINGS["stamped"]:
        recording.record_waits([sent])
    recording.record_body(1)
    return "ok"
