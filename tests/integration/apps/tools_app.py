"""An ordinary task and a batch task that do the same, in a worker that one monitoring tool watches.

`TOOL` names the module in `tools/` that sets the tool up. It has a function ``mark``, which says
something of what runs, as users do: who it is for, what it is about. What the tool would send, it
reports to the test. A process that only sends calls has no tool.
"""

import importlib
import os

from celery import Celery, Task
from reporting import report

from celery_batches import Batches

app = Celery("tools_app")
app.config_from_object("celeryconfig")

TOOL = os.environ.get("TOOL")
tool = importlib.import_module(f"tools.{TOOL}") if TOOL else None
if hasattr(tool, "watch"):
    tool.watch(app)

OPTIONS = {
    "bind": True,
    "default_retry_delay": 0,
    "autoretry_for": (ConnectionError,),
    "retry_kwargs": {"max_retries": 1, "countdown": 0},
}


@app.task(name="alone", **OPTIONS)
def alone(self, how):
    act(self, how, self.request.retries)


@app.task(base=Batches, name="together", flush_every=2, flush_interval=600, **OPTIONS)
def together(self, requests):
    act(self, requests[0].args[0], requests[0].retries)
    first, second = requests
    if first.args[0] == "fail alone":
        first.mark_as_failure(KeyError("no luck"))
    else:
        first.mark_as_done("first")
    second.mark_as_done("second")


class Called:
    """As in the documentation of Flask: the body runs within something of the application."""

    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)


class CalledTask(Called, Task):
    abstract = True


class CalledBatches(Called, Batches):
    abstract = True


@app.task(base=CalledTask, name="alone_called", **OPTIONS)
def alone_called(self, how):
    act(self, how, self.request.retries)


@app.task(base=CalledBatches, name="together_called", flush_every=2, flush_interval=600, **OPTIONS)
def together_called(self, requests):
    act(self, requests[0].args[0], requests[0].retries)
    for request in requests:
        request.mark_as_done("done")


def act(task, how, retries):
    if how == "mark":
        tool.mark()
    if how in ("fail", "mark"):
        raise KeyError("no luck")
    if how == "retry" and not retries:
        raise task.retry(exc=KeyError("no luck yet"))
    if how == "give up":
        try:
            fail_in_context()
        except KeyError as error:
            task.retry(exc=error, max_retries=1)
    if how == "autoretry":
        try:
            raise TimeoutError
        except TimeoutError as error:
            raise ConnectionError("nobody answers") from error


def fail_in_context():
    try:
        raise TimeoutError
    except TimeoutError:
        raise KeyError("no luck")  # noqa: B904 - it has a context, and no cause.


@app.task(name="fence")
def fence(number):
    """Runs when all that came before has ended: the worker has one process or thread."""
    report("fence", number=number)
