"""What a body forgets or breaks is in the log of a real worker, and no caller is left to guess."""

import os
import subprocess
import sys

import pytest
from harness import DEADLINE

REFUSED = {
    "generator": (
        "Task 'refused': its body is a generator function, of which a call runs nothing. Take "
        "yield out of the body, and call request.mark_as_done(result) to give a request its result."
    ),
    "async generator": (
        "Task 'refused': its body is a generator function, of which a call runs nothing. Take "
        "yield out of the body, and call request.mark_as_done(result) to give a request its result."
    ),
    "no parameter": (
        "Task 'refused': its body takes no argument for the requests of a batch. Define it as def "
        "no_parameter(requests)."
    ),
    "flush_intervall": (
        "Task 'refused': there is no option flush_intervall. Set flush_interval=5 instead, if that "
        "is what you mean."
    ),
    "batch_size": (
        "Task 'refused': there is no option batch_size. Set flush_every=100 instead, if that is "
        "what you mean."
    ),
    "flush_timeout": (
        "Task 'refused': there is no option flush_timeout. Set flush_interval=5 instead, if that "
        "is what you mean."
    ),
    "rate_limit": (
        "Task 'refused': rate_limit is 'ten', but it must be a number of batches a second or a "
        'string such as "10/s", "100/m" or "1000/h". Set for example rate_limit="100/m".'
    ),
}


@pytest.mark.redis
@pytest.mark.parametrize(("name", "message"), REFUSED.items(), ids=REFUSED)
def test_a_worker_does_not_start_with_a_task_that_cannot_work(redis_url, deploy, name, message):
    """It says which task, and what to write instead."""
    site = deploy("refused_app", redis_url)
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", site.name, "worker", "-c", "1"],
        cwd=site.directory,
        env={**os.environ, "C_FORCE_ROOT": "1", "REFUSED": name},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode != 0
    assert message in ended.stdout + ended.stderr


def send(task, *args):
    return [task.delay(each) for each in args]


def warnings(worker):
    return [line for line in worker.log.items if ": WARNING/" in line]


@pytest.mark.redis
def test_what_bodies_forget_is_in_the_log(redis_url, deploy):
    """Neighbours and ordinary tasks go on."""
    site = deploy("silent_app", redis_url, redis_url)
    module = site.module
    with site.worker(concurrency=1) as worker:
        returned = send(module.returns_a_list, 1, 2, 3)
        again = send(module.returns_a_list, 1, 2, 3)
        first, second, _ = send(module.marks_some, 1, 2, 3)
        wrapped = send(module.wraps_a_generator, 1, 2, 3)
        short = send(module.too_short, 1, 2, 3)
        assert first.get(timeout=30) == 1
        with pytest.raises(TypeError, match="the body returned a generator, so nothing of it has"):
            wrapped[0].get(timeout=30)
        with pytest.raises(ValueError, match="the body returned 1 results for 3 requests"):
            short[0].get(timeout=30)
        assert module.double.delay(4).get(timeout=30) == 8
        worker.wait_for_batches(15)
        site.wait_until_active(worker, 0)
    assert {call.state for call in (*returned, *again, second)} == {"PENDING"}
    assert [line.partition(" Task ")[2] for line in warnings(worker) if " Task " in line] == [
        "returns_a_list: the body has returned and left 3 of 3 requests without an outcome, so "
        "their callers wait for ever. The first of them is <SimpleRequest: "
        f"returns_a_list[{returned[0].id}] args=[1] kwargs={{}}>. The body has returned a list "
        "with one item for each request: set return_results=True to make these the results. Or "
        "call request.mark_as_done(result) for each request. If nobody waits for results, set "
        "ignore_result=True. This is logged once for each task and process",
        "marks_some: the body has returned and left 2 of 3 requests without an outcome, so their "
        f"callers wait for ever. The first of them is <SimpleRequest: marks_some[{second.id}] "
        "args=[2] kwargs={}>. Call request.mark_as_done(result) for each request, or set "
        "return_results=True and return a list of their results. If nobody waits for results, set "
        "ignore_result=True. This is logged once for each task and process",
    ]
    assert site.messages_left() == 0


@pytest.mark.redis
def test_what_fails_is_in_the_log(redis_url, deploy):
    """A line for each request, ten at most, and a batch that has failed."""
    site = deploy("silent_app", redis_url, redis_url, **PICKLE)
    module = site.module
    kinds = [KeyError("expected"), *(ValueError(number) for number in range(12))]
    with site.worker(concurrency=1) as worker:
        calls = send(module.marks_failures, *kinds, None)
        every = send(module.fails_all, 1, 2, 3)
        assert calls[-1].get(timeout=30) == "fine"
        for call, exc in zip(calls, kinds, strict=False):
            with pytest.raises(type(exc)):
                call.get(timeout=30)
        some, none = worker.wait_for_batches(17)
        site.wait_until_active(worker, 0)
    lines = [line for line in worker.log.items if "/ForkPoolWorker" in line]
    expected = [line for line in lines if "raised expected" in line]
    assert [": INFO/" in line and calls[0].id in line for line in expected] == [True]
    failed = [
        *(("marks_failures", calls[number + 1], number) for number in range(10)),
        *(("fails_all", call, number) for number, call in enumerate(every, 1)),
    ]
    unexpected = [line.partition("] Task ")[2] for line in lines if "raised unexpected" in line]
    assert unexpected == [
        f"{name}[{call.id}] raised unexpected: ValueError({n})" for name, call, n in failed
    ]
    (rest,) = [line for line in worker.problems if "more of its" in line]
    assert rest.endswith(
        f"Batch marks_failures[{some['id']}]: 2 more of its 14 requests have failed like the 10 "
        f"above, each by an exception of its own"
    )
    assert (some["ending"], some["what"]) == ("succeeded", "None (13 failed)")
    assert none["ending"] == "failed"
    assert none["what"] == "every request has failed, the first with ValueError(1)"
    assert len(worker.problems) == 10 + 1 + 3
    assert worker.text.count("Traceback") == 10  # The others were never raised.


#: Exceptions as arguments.
PICKLE = {
    "task_serializer": "pickle",
    "result_serializer": "pickle",
    "accept_content": ["json", "pickle"],
}

HELPERS = [
    ("prefork", "in_threads"),
    ("threads", "in_threads"),
    ("solo", "in_threads"),
    pytest.param("gevent", "in_threads", marks=pytest.mark.gevent),
    pytest.param("gevent", "in_greenlets", marks=pytest.mark.gevent),
    pytest.param("eventlet", "in_threads", marks=pytest.mark.eventlet),
]


@pytest.mark.redis
@pytest.mark.parametrize(("pool", "name"), HELPERS)
def test_helpers_of_a_body_mark_its_requests(redis_url, deploy, pool, name):
    """By the result backend, by id, in several batches at once: with links, and for good."""
    site = deploy("silent_app", redis_url, redis_url)
    task, double = getattr(site.module, name), site.module.double
    with site.worker(pool) as worker:
        calls = [task.apply_async((number,), link=double.s()) for number in range(12)]
        for at in range(0, 12, 3):
            for number in (at, at + 1):
                assert calls[number].get(timeout=30) == number * 2
            with pytest.raises(KeyError, match="after the marks"):
                calls[at + 2].get(timeout=30)
        children = [calls[number].children for number in range(12)]
        assert [len(each or ()) for each in children] == [1, 1, 0] * 4
        assert children[1][0].get(timeout=30) == 4
        batches = worker.wait_for_batches(12)
        site.wait_until_active(worker, 0)
    assert {batch["ending"] for batch in batches} == {"raised unexpected"}
    assert {batch["what"] for batch in batches} == {"KeyError('after the marks') (2 done)"}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_the_batch_in_the_body(broker, backend, deploy, pool):
    """Its id is in the log, and its oldest request has waited for the interval."""
    site = deploy("silent_app", broker, backend)
    task = site.module.knows_its_batch
    calls = [task.apply_async(retries=retries) for retries in (0, 2)]
    with site.worker(pool) as worker:
        (told,) = {tuple(call.get(timeout=30)) for call in calls}
        (logged,) = worker.wait_for_batches(2)
        site.wait_until_active(worker, 0)
    batch_id, request_id, trigger, size, waited, retries = told
    assert batch_id == request_id == logged["id"]
    assert (trigger, size, retries) == (logged["trigger"], 2, 2) == ("interval", 2, 2)
    assert waited >= 1
