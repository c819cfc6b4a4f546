"""Parts of chords whose process ends once while they are stored and counted."""

import os
import signal
import sys

from celery import Celery
from reporting import report

from celery_batches import Batches

app = Celery("chords")
app.config_from_object("celeryconfig")

SIZE = 6


def end_once(name, way):
    """End the process, unless that was done before under this name."""
    try:
        os.close(os.open(f"ended-{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    report("end", name=name)
    if way == "exit":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


class Result:
    """A number that ends the process when it is serialised, which is before it is stored."""

    def __init__(self, number, name, way):
        self.number, self.name, self.way = number, name, way

    def __reduce__(self):
        end_once(self.name, self.way)
        return int, (self.number,)


def value_of(name, number, where, way):
    return Result(number, name, way) if where == "storing" and number == SIZE // 2 else number


class HandlerOfBatch(Batches):
    abstract = True

    def on_success(self, retval, task_id, args, kwargs):
        name, number, where, way = args
        if number == 0 and where == "handler":
            end_once(name, way)


class HandlerOfTask(app.Task):
    abstract = True
    on_success = HandlerOfBatch.on_success


def count_calls(requests):
    """Mark by the methods of the requests."""
    for request in requests:
        request.mark_as_done(value_of(*request.args))


def mark_calls(requests):
    """Mark by the backend."""
    for request in requests:
        app.backend.mark_as_done(request.id, value_of(*request.args), request=request)


def count_call(name, number, where, way):
    return value_of(name, number, where, way)


LATE = {"acks_late": True, "reject_on_worker_lost": True}
BATCH = {"base": HandlerOfBatch, "flush_every": SIZE, "flush_interval": 1}

TASKS = {}
for when, acks in {"early": {}, "late": LATE}.items():
    TASKS["methods", when] = app.task(name=f"methods-{when}", **BATCH, **acks)(count_calls)
    TASKS["backend", when] = app.task(name=f"backend-{when}", **BATCH, **acks)(mark_calls)
    TASKS["task", when] = app.task(name=f"task-{when}", base=HandlerOfTask, **acks)(count_call)


@app.task
def total(values, name):
    report("total", name=name)
    return sum(values)
