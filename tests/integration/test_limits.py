"""Time limits of a batch and of its members; rate limits, which count batches."""

import os

import pytest
from celery import VERSION, Task
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded


def pair(task, *options, **common):
    """Two calls, which make a batch; each with its own options, and with those for both."""
    each = options or ({}, {})
    return [task.apply_async((i,), **each[i], **common) for i in range(2)]


def ids(*pairs):
    return sorted(call.id for calls in pairs for call in calls)


def wait_until_received(site, task, count):
    site.reports.expect("received", count, each=lambda report: report["name"] == task.name)


def nothing_more_runs(site):
    """Wait for a task that comes after all that was sent until now."""
    done = len(site.reports.of("last"))
    site.module.last.delay()
    site.reports.expect("last", done + 1)


def args_of(site, event):
    return [report["args"] for report in site.reports.of(event)]


def limit_for_all(broker, name):
    """Return the configuration and the options of a worker that limit all tasks to 1.5 seconds.

    To the worker these are two ways: the tasks know of the one, the pool of the other.
    """
    if broker.startswith("redis"):
        return {f"task_{name}": 1.5}, []
    return {}, [f"--{name.replace('_', '-')}=1.5"]


def test_the_tightest_time_limit_ends_the_batch(broker, backend, deploy):
    config, options = limit_for_all(broker, "time_limit")
    site = deploy("limits_app", broker, backend, **config)
    gate = site.directory / "go"
    os.mkfifo(gate)
    module = site.module
    link_error = module.errback.s()
    # What the worker knows, the calls need not say.
    module.by_setting.time_limit = module.by_option.time_limit = None
    # Each ends a process. Which limit it was, its exception says.
    batches = {
        1.5: pair(module.by_setting, link_error=link_error),
        1.25: pair(module.by_option, link_error=link_error),
        1.0: pair(module.by_setting, {"time_limit": 600}, {"time_limit": 1}, link_error=link_error),
    }
    # A call without a limit of its own has that of the task, or else that of the configuration.
    one_long = {"time_limit": 600}, {}
    mixed = {
        1.5: pair(module.by_setting, *one_long, link_error=link_error),
        1.25: pair(module.by_option, *one_long, link_error=link_error),
    }
    # Limits of the calls go before that of the task, also if they are longer.
    patient = pair(module.gated, {"time_limit": 600}, {"time_limit": 500})
    with site.worker("prefork", *options, concurrency=6) as worker:
        site.reports.expect("gated")
        for limit, calls in [*batches.items(), *mixed.items()]:
            for call in calls:
                with pytest.raises(TimeLimitExceeded) as caught:
                    call.get(timeout=30)
                assert caught.value.args == (limit,)
                assert call.state == "FAILURE"
        worker.wait_for_log("Process .* exited with 'signal", 5)
        # What ran beside them goes on, and so does the worker.
        gate.write_text("now")
        assert [call.get(timeout=30) for call in patient] == [0, 2]
        later = pair(module.quick)
        assert [call.get(timeout=30) for call in later] == [0, 2]
        site.wait_until_active(worker, 0)
    failed = ids(*batches.values(), *mixed.values())
    assert sorted(report["id"] for report in site.reports.of("errback")) == failed
    assert sorted(i for report in site.reports.of("hang") for i in report["ids"]) == failed
    assert len(site.reports.of("gated")) == 1
    assert site.messages_left() == 0


def test_the_body_is_told_of_the_tightest_soft_time_limit(broker, backend, deploy):
    config, options = limit_for_all(broker, "soft_time_limit")
    site = deploy("limits_app", broker, backend, **config)
    gate = site.directory / "go"
    os.mkfifo(gate)
    module = site.module
    link_error = module.errback.s()
    module.by_setting.soft_time_limit = module.by_soft_option.soft_time_limit = None
    batches = {
        ("by_setting", 1.5): pair(
            module.by_setting, {"soft_time_limit": 600}, {}, link_error=link_error
        ),
        ("by_soft_option", 1.25): pair(module.by_soft_option, link_error=link_error),
        ("by_setting", 1): pair(
            module.by_setting,
            {"soft_time_limit": 600},
            {"soft_time_limit": 1},
            link_error=link_error,
        ),
    }
    patient = pair(module.softly_gated, {"soft_time_limit": 600}, {"soft_time_limit": 500})
    careful = [module.careful.apply_async((i,), link_error=link_error) for i in range(3)]
    content = pair(module.content, link_error=link_error)
    with site.worker("prefork", *options, concurrency=6) as worker:
        site.reports.expect("gated")
        for (name, limit), calls in batches.items():
            for call in calls:
                with pytest.raises(SoftTimeLimitExceeded):
                    call.get(timeout=30)
            worker.wait_for_log(rf"Batch {name}\[.*soft time limit \({limit}s\) exceeded")
        # What the body has marked before it raises, stays: only the rest of them fail.
        assert [call.get(timeout=30) for call in careful[:2]] == [0, "saved"]
        with pytest.raises(SoftTimeLimitExceeded):
            careful[2].get(timeout=30)
        assert [call.get(timeout=30) for call in content] == [0, 2]
        gate.write_text("now")
        assert [call.get(timeout=30) for call in patient] == [0, 2]
        site.wait_until_active(worker, 0)
    # Nothing was killed, and each batch that failed has one line for that.
    assert len(worker.problems) == 4
    assert all("Batch " in line for line in worker.problems)
    failed = ids(careful[2:], *batches.values())
    assert sorted(report["id"] for report in site.reports.of("errback")) == failed
    assert site.messages_left() == 0


def test_with_acks_late_a_time_limit_acknowledges_as_for_an_ordinary_task(broker, backend, deploy):
    site = deploy("limits_app", broker, backend)
    batches, twins = {}, {}
    for name in site.module.ACKS:
        batches[name] = pair(site.app.tasks[f"batch_{name}"])
        twins[name] = site.app.tasks[f"plain_{name}"].delay(0)
    sent = [*twins.values(), *(call for calls in batches.values() for call in calls)]
    # Celery before 5.5 never has the broker deliver them again, and says nowhere that it differs.
    expected = {name: {1} for name in site.module.ACKS}
    if VERSION >= (5, 5):
        expected["rejecting"] = {2}
    if hasattr(Task, "acks_on_timeout"):
        expected["timeout_rejecting"] = {2}
    with site.worker(concurrency=8) as worker:
        for call in sent:
            with pytest.raises(TimeLimitExceeded):
                call.get(timeout=30)
        # Each option has three messages: two in a batch, and its twin.
        wanted = sum(3 * count for (count,) in expected.values())
        site.reports.expect("run", wanted, each=lambda report: len(report["ids"]))
        nothing_more_runs(site)
        site.wait_until_active(worker, 0)
    runs = [i for report in site.reports.of("run") for i in report["ids"]]
    counts = {name: {runs.count(call.id) for call in calls} for name, calls in batches.items()}
    assert counts == expected
    assert {name: {runs.count(call.id)} for name, call in twins.items()} == expected
    assert site.messages_left() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_rate_limit_counts_batches_which_fill_while_they_wait(pool, broker, deploy):
    site = deploy("limits_app", broker)
    limited, free, paced, ticking = (
        site.module.limited,
        site.module.free,
        site.module.paced,
        site.module.ticking,
    )

    def limit(task, rate):
        """Set the limit of a running worker."""
        (reply,) = site.app.control.rate_limit(
            task.name, rate, destination=[worker.node], reply=True, timeout=20
        )
        assert "ok" in reply[worker.node]

    with site.worker(pool) as worker:
        # A batch of three counts as one; the next one has to wait, full as it is, and so on.
        for i in range(10):
            limited.delay(i)
        wait_until_received(site, limited, 10)
        # A part-filled batch that is due waits too. Its time is over when that of a later one is.
        paced.delay(0)
        site.reports.expect("paced")
        paced.delay(1)
        wait_until_received(site, paced, 2)
        ticking.delay(0)
        site.reports.expect("ticking")
        nothing_more_runs(site)
        assert args_of(site, "limited") == [[0, 1, 2]]
        assert args_of(site, "paced") == [[0]]
        # The one goes on filling, and both go on when the limit is lifted.
        for i in range(2, 5):
            paced.delay(i)
        wait_until_received(site, paced, 5)
        limit(paced, "100/s")
        site.reports.expect("paced", 2)
        limit(limited, "100/s")
        site.reports.expect("limited", 3)
        assert args_of(site, "paced") == [[0], [1, 2, 3, 4]]
        assert sorted(args_of(site, "limited")) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        # A task without a limit can be given one, and can lose it.
        for i in range(3):
            free.delay(i)
        site.reports.expect("free")
        limit(free, "1/h")
        for i in range(3, 12):
            free.delay(i)
        wait_until_received(site, free, 12)
        site.reports.expect("free", 2)
        nothing_more_runs(site)
        assert args_of(site, "free") == [[0, 1, 2], [3, 4, 5]]
        limit(free, 0)
        site.reports.expect("free", 4)
        limit(free, "1/h")
        for i in range(12, 18):
            free.delay(i)
        site.reports.expect("free", 5)
        wait_until_received(site, free, 18)
        site.wait_until_active(worker, 0, waiting=4)
    # What still waits, full or not, goes back to the broker.
    assert sorted(args_of(site, "free")) == [[i, i + 1, i + 2] for i in range(0, 15, 3)]
    assert len(args_of(site, "limited")) == 3
    assert site.messages_left() == 3 + 1


def test_rate_limits_can_be_disabled(broker, deploy):
    site = deploy("limits_app", broker, worker_disable_rate_limits=True)
    for i in range(9):
        site.module.limited.delay(i)
    with site.worker() as worker:
        site.reports.expect("limited", 3)
        site.wait_until_active(worker, 0)
    assert sorted(args_of(site, "limited")) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert site.messages_left() == 0
