"""Batch tasks whose options change while the worker runs."""

from celery import Celery, signals
from celery.worker.control import control_command
from reporting import report

from celery_batches import Batches

app = Celery("options")
app.config_from_object("celeryconfig")


class Computed(Batches):
    """Its options are properties."""

    abstract = True
    size, seconds = 2, 600

    @property
    def flush_every(self):
        return self.size

    @property
    def flush_interval(self):
        return self.seconds


def run(requests):
    report("batch", task=requests[0].name, args=[request.args[0] for request in requests])


for name in ("at_start", "grows", "shrinks", "sooner", "nonsense"):
    app.task(base=Batches, name=name, flush_every=2, flush_interval=600)(run)
app.task(base=Computed, name="computed")(run)


@app.task(name="ordinary")
def ordinary(value):
    return value


@signals.worker_ready.connect
def change_at_start(**_):
    app.tasks["at_start"].flush_every = 6


@control_command(name="set_option", args=[("task", str), ("option", str), ("value", int)])
def set_option(state, task, option, value):
    """Set an option of a task in this worker."""
    setattr(app.tasks[task], option, value)
    return {"ok": value}
