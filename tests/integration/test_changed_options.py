"""Options that are set in a running worker take effect with the next request."""

import pytest
from harness import one_worker, options_for
from kombu.utils.uuid import uuid

#: Broker and pool of the workers, each of which runs all tests of this module.
WORKERS = [
    pytest.param((broker, pool), marks=getattr(pytest.mark, broker), id=f"{broker}-{pool}")
    for broker in ("redis", "rabbitmq")
    for pool in ("prefork", "threads")
]


@pytest.fixture(scope="module", params=WORKERS)
def shared(request, tmp_path_factory, redis_url):
    broker, pool = request.param
    url = request.getfixturevalue(f"{broker}_url")
    options = options_for(url, redis_url, f"test-{uuid()}")
    with one_worker("options_app", tmp_path_factory.mktemp("options"), options, pool) as shared:
        yield shared


def send(site, name, *values):
    for value in values:
        site.app.tasks[name].delay(value)


def sizes(site, name, requests):
    """The sizes of the batches of a task, when it has run so many requests."""

    def of_task(report):
        return len(report["args"]) if report["task"] == name else 0

    site.reports.expect("batch", requests, each=of_task)
    return [of_task(report) for report in site.reports.of("batch") if of_task(report)]


def set_option(site, worker, task, option, value):
    arguments = {"task": task, "option": option, "value": value}
    # With Redis, what is sent before the worker listens is lost.
    for _ in range(10):
        replies = site.app.control.broadcast(
            "set_option", arguments, destination=[worker.node], reply=True, timeout=4, limit=1
        )
        if replies:
            break
    assert replies == [{worker.node: {"ok": value}}]


def serves_others(site):
    return site.app.tasks["ordinary"].delay("served").get(timeout=30) == "served"


def test_a_signal_handler_sets_flush_every(site, worker):
    """As in 0.11: six calls make one batch of six."""
    send(site, "at_start", *range(6))
    assert sizes(site, "at_start", 6) == [6]


def test_a_control_command_raises_flush_every(site, worker):
    """What is buffered counts. The prefetch count follows: more than the budget fits in a batch."""
    send(site, "grows", 0)
    site.wait_until_active(worker, 0, waiting=1)
    set_option(site, worker, "grows", "flush_every", 40)
    send(site, "grows", *range(1, 40))
    assert sizes(site, "grows", 40) == [40]
    assert serves_others(site)


def test_a_control_command_lowers_flush_every(site, worker):
    """The next request flushes what is buffered, and no batch is larger than that."""
    set_option(site, worker, "shrinks", "flush_every", 50)
    send(site, "shrinks", *range(11))
    site.wait_until_active(worker, 0, waiting=11)
    set_option(site, worker, "shrinks", "flush_every", 4)
    send(site, "shrinks", 11)
    assert sizes(site, "shrinks", 12) == [4, 4, 4]
    assert serves_others(site)


def test_a_control_command_lowers_flush_interval(site, worker):
    """The timer is armed anew."""
    set_option(site, worker, "sooner", "flush_every", 50)
    send(site, "sooner", 0)
    site.wait_until_active(worker, 0, waiting=1)
    set_option(site, worker, "sooner", "flush_interval", 1)
    send(site, "sooner", 1)
    assert sum(sizes(site, "sooner", 2)) == 2


def test_properties(site, worker):
    """They are read for each request."""
    send(site, "computed", 0, 1)
    assert sizes(site, "computed", 2) == [2]
    set_option(site, worker, "computed", "size", 5)
    send(site, "computed", *range(2, 7))
    assert sizes(site, "computed", 7) == [2, 5]
    set_option(site, worker, "computed", "seconds", 1)
    send(site, "computed", 7)
    assert sizes(site, "computed", 8) == [2, 5, 1]


def test_a_value_that_makes_no_sense(site, worker):
    """It is logged once, and the last good one stays."""
    set_option(site, worker, "nonsense", "flush_every", 0)
    send(site, "nonsense", *range(6))
    assert sizes(site, "nonsense", 6) == [2, 2, 2]
    assert serves_others(site)
    [line] = [line for line in worker.problems if "nonsense" in line]
    assert "flush_every" in line
    assert "Set for example flush_every=100" in line
