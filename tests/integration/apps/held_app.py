"""Batch tasks and ordinary ones, whose calls a worker has for a while before they run."""

from celery import Celery, signals
from reporting import report

from celery_batches import Batches

app = Celery("held")
app.config_from_object("celeryconfig")


def run_batch(requests):
    report("run", numbers=[request.args[0] for request in requests])


def run_one(number):
    report("run", numbers=[number])


#: The interval is as long as calls of ordinary tasks wait for their ETA, in seconds.
WAIT = 8
for mode, options in {"early": {}, "late": {"acks_late": True}}.items():
    app.task(name=f"batch_{mode}", base=Batches, flush_every=100, flush_interval=WAIT, **options)(
        run_batch
    )
    app.task(name=f"ordinary_{mode}", **options)(run_one)


@signals.task_received.connect
def on_received(request, **kwargs):
    report("received", numbers=[request.args[0]])
