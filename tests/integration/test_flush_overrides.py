"""Overrides of `flush` on real workers: no request is left behind, and the worker goes on."""

import pytest
from celery import chord
from celery.exceptions import ChordError
from harness import one_worker, options_for
from kombu.utils.uuid import uuid

#: Broker and pool of the workers, each of which runs all tests of this module.
WORKERS = [
    pytest.param((broker, pool), marks=getattr(pytest.mark, broker), id=f"{broker}-{pool}")
    for broker in ("redis", "rabbitmq")
    for pool in ("prefork", "threads")
]

LATE = pytest.mark.parametrize("late", ["", "_late"], ids=["early", "late"])

#: Batches: with two processes and the default multiplier, more requests than a worker may hold.
ROUNDS = 8


@pytest.fixture(scope="module", params=WORKERS)
def shared(request, tmp_path_factory, redis_url):
    broker, pool = request.param
    url = request.getfixturevalue(f"{broker}_url")
    options = options_for(url, redis_url, f"test-{uuid()}")
    with one_worker("flush_app", tmp_path_factory.mktemp("flush"), options, pool) as shared:
        yield shared


def serves_others(site):
    """An ordinary task on the same worker is the control."""
    return site.app.tasks["ordinary"].delay("served").get(timeout=30) == "served"


def send(site, name, *values, **options):
    return [site.app.tasks[name].apply_async((value,), **options) for value in values]


def lines(worker, text):
    return [line for line in worker.log.items if text in line]


@LATE
def test_a_flush_that_filters(site, worker, late):
    """What it leaves out is ignored, with a warning for each batch; the rest runs."""
    name = f"filters{late}"
    kept, dropped = [], []
    for number in range(ROUNDS):
        kept += send(site, name, f"keep {number}")
        dropped += send(site, name, "drop", "drop", "drop")
    assert [call.get(timeout=30) for call in kept] == [f"keep {n}" for n in range(ROUNDS)]
    assert serves_others(site)
    site.wait_until_active(worker, 0)
    warned = lines(worker, f"Task {name}: flush() has left out")
    assert 1 <= len(warned) <= 4 * ROUNDS
    assert {call.state for call in dropped} == {"PENDING"}


@LATE
def test_a_flush_that_raises(site, worker, late):
    """Its requests fail with that exception: errbacks and chords hear of it."""
    name = f"raises{late}"
    for _ in range(ROUNDS):
        calls = send(site, name, 1, 2, 3)
        calls += send(site, name, 4, link_error=site.app.signature("errback"))
    for call in calls:
        with pytest.raises(RuntimeError, match="the override is wrong"):
            call.get(timeout=30)
    task = site.app.tasks[name]
    waits = chord([task.s(1), task.s(2)], site.app.signature("collect")).apply_async()
    with pytest.raises(ChordError, match="the override is wrong"):
        site.app.AsyncResult(waits.id).get(timeout=30)
    told = {report["id"] for report in site.reports.expect("errback", ROUNDS)}
    assert calls[-1].id in told
    assert serves_others(site)
    site.wait_until_active(worker, 0)
    assert lines(worker, f"Task {name}: flush() has raised")


@LATE
def test_a_flush_that_raises_when_it_has_passed_some_on(site, worker, late):
    """Those run; the rest fails."""
    first, *rest = send(site, f"raises_later{late}", 1, 2, 3, 4)
    assert first.get(timeout=30) == 1
    for call in rest:
        with pytest.raises(RuntimeError, match="the override is wrong"):
            call.get(timeout=30)
    assert serves_others(site)


@LATE
@pytest.mark.parametrize("way", ["later", "next"])
def test_a_flush_that_passes_on_later(site, worker, late, way):
    """From another thread, twice, or with the next batch: each runs once."""
    values = [f"{way}{late} {number}" for number in range(4 * ROUNDS)]
    calls = send(site, f"{way}{late}", *values)
    # The next batch takes what was kept of the last.
    expected = dict(zip(calls, values, strict=True))
    last = [] if way == "later" else calls[-4:]
    for call, value in expected.items():
        if call not in last:
            assert call.get(timeout=30) == value
    if last:
        extra = send(site, f"{way}{late}", "extra 1", "extra 2")
        assert [call.get(timeout=30) for call in last] == values[-4:]
        assert extra[1].get(timeout=30) == "extra 2"
    assert serves_others(site)
    site.wait_until_active(worker, 0)
    ran = [value for batch in site.reports.of("batch") for value in batch["args"]]
    assert sorted(value for value in ran if value in values) == sorted(values)


@LATE
def test_request_objects_of_its_own(site, worker, late):
    """As overrides of 0.1 make them: what the body marks them as counts."""
    calls = send(site, f"own{late}", *range(12))
    assert [call.get(timeout=30) for call in calls] == list(range(12))


def test_request_objects_of_its_own_that_are_revoked(site, worker):
    """They are in the buffer by then. The body does not get them."""
    revoked, *rest = (str(uuid()) for _ in range(4))
    own = site.app.tasks["own_full"]
    own.apply_async((revoked,), task_id=revoked)
    site.wait_until_active(worker, 0, waiting=1)
    site.app.control.revoke(revoked, destination=[worker.node], reply=True, timeout=5)
    for value in rest:
        own.apply_async((value,), task_id=value)
    for value in rest:
        assert site.app.AsyncResult(value).get(timeout=30) == value
    assert site.app.AsyncResult(revoked).state == "REVOKED"
    assert [rest] == [b["args"] for b in site.reports.of("batch") if set(b["args"]) & {*rest}]
