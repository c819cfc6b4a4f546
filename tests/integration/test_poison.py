"""A call that ends its process or hangs each time, and comes again: late, with a requeue.

Ordinary tasks are the control: nine of ten calls are done, and the poison goes on alone.
"""

import pytest
from celery import VERSION

no_requeue = pytest.mark.skipif(VERSION < (5, 5), reason="this Celery does not requeue them")
TASKS = [
    *("batch_kills", "plain_kills"),
    *(pytest.param(name, marks=no_requeue) for name in ("batch_hangs", "plain_hangs")),
]

QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 3}


def done(reports):
    """The numbers of the calls that are done. A time limit has stored a failure of some before."""
    return {n for report in reports if report["event"] == "done" for n in report["numbers"]}


def runs_of(reports, number):
    """The sizes of the batches in which a call has run."""
    runs = [report["numbers"] for report in reports if report["event"] == "run"]
    return [len(numbers) for numbers in runs if number in numbers]


def wait_for_neighbours(site):
    """Wait until all but the poison are done."""
    others = set(range(site.module.CALLS)) - {site.module.POISON}
    site.reports.wait(lambda r: len(done(r) & others), len(others), what="calls that are done")


def wait_for_runs(site, count):
    """Wait until the poison has run so often; return the sizes of its batches."""
    poison = site.module.POISON
    site.reports.wait(lambda r: len(runs_of(r, poison)), count, what="runs of the poison")
    return runs_of(site.reports.items, poison)


def requeues_in(worker):
    """The size of the next batches in each line of the log about a requeue."""
    part = "They run in batches of at most "
    return [int(line.split(part)[1].split(",")[0]) for line in worker.log.items if part in line]


@pytest.mark.rabbitmq
@pytest.mark.parametrize("name", TASKS)
def test_the_delivery_limit_drops_the_poison_alone(name, rabbitmq_url, deploy):
    """A quorum queue delivers a message four times, whatever it shared its batches with."""
    site = deploy("poison_app", rabbitmq_url, queue_arguments=QUORUM)
    module = site.module
    for number in range(module.CALLS):
        getattr(module, name).delay(number)
    with site.worker() as worker:
        wait_for_neighbours(site)
        wait_for_runs(site, 4)
        site.wait_until_active(worker, 0)
        site.wait_for_messages(0)
    assert module.POISON not in done(site.reports.items)
    sizes = runs_of(site.reports.items, module.POISON)
    if name.startswith("batch"):
        assert sizes[0] == module.CALLS
        assert requeues_in(worker)[0] == 4
    assert sizes[-1] == 1, "the poison was not alone"
    assert requeues_in(worker)[-1:] == ([1] if name.startswith("batch") else [])


@pytest.mark.parametrize("name", TASKS)
def test_without_a_limit_the_poison_goes_round_alone(name, broker, deploy):
    """Where nothing limits deliveries, all other calls are done while the poison comes again."""
    site = deploy("poison_app", broker)
    module = site.module
    for number in range(module.CALLS):
        getattr(module, name).delay(number)
    with site.worker() as worker:
        wait_for_neighbours(site)
        sizes = wait_for_runs(site, 5)
        (site.directory / "cured").touch()
        site.reports.wait(lambda r: module.POISON in done(r), 1, what="end of the poison")
        site.wait_until_active(worker, 0)
    assert sizes[-1] == 1
    assert site.messages_left() == 0
