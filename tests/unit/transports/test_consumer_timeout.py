"""RabbitMQ takes back what is not acknowledged in time: the worker warns of waits that long."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.consumer import Consumer
from kombu import Queue

from celery_batches.transports.consumer_timeout import consumer_timeout
from celery_batches.worker.bootstep import BatchesStep
from kit.channel import Channel
from kit.consumer import FakeConsumer
from kit.messages import protocol_2
from kit.tasks import make_task

LIMIT = "x-consumer-timeout"


def consumer_of(app: Celery, *queues: Queue, driver: str = "amqp") -> FakeConsumer:
    """A worker's consumer of these queues, or of one without arguments."""
    consumer = FakeConsumer(app)
    consumer.connection.transport = SimpleNamespace(driver_type=driver)
    consumer.connection.qos_semantics_matches_spec = True
    consumer.task_consumer.queues = list(queues or [Queue("plain")])
    return consumer


def start(consumer: FakeConsumer, **options: Any) -> Any:
    """Start the worker with one batch task."""
    task = make_task(consumer.app, **{"name": "unit.slow", **options})
    consumer.strategies = {task.name: task.Strategy(task, consumer.app, consumer)}
    BatchesStep(consumer).start(consumer)
    return task


@pytest.mark.parametrize(("interval", "warns"), [(1799.9, False), (1800, True), (1e6, True)])
def test_an_interval_that_reaches_the_default(
    app: Celery, caplog: pytest.LogCaptureFixture, interval: float, warns: bool
) -> None:
    """One line names the task, the option, the limit and the fix."""
    start(consumer_of(app), flush_interval=interval)
    assert [record.levelname for record in caplog.records] == (["WARNING"] if warns else [])
    if warns:
        line = caplog.records[0].getMessage()
        for part in ("Task unit.slow: flush_interval", f"{interval:g}s", "1800s", "\n"):
            assert (part in line) is (part != "\n")
        assert line.endswith(
            "Lower flush_interval, or raise consumer_timeout in rabbitmq.conf and set "
            "batches_consumer_timeout to it, in seconds."
        )


def test_other_brokers_have_no_such_limit(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    start(consumer_of(app, driver="redis"), flush_interval=1e9)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("setting", "interval", "warns"),
    [(60, 60, True), (60, 59, False), (7200, 3600, False), (None, 1e9, False)],
)
def test_the_setting_takes_the_place_of_the_default(
    app: Celery, caplog: pytest.LogCaptureFixture, setting: Any, interval: float, warns: bool
) -> None:
    app.conf.batches_consumer_timeout = setting
    start(consumer_of(app), flush_interval=interval)
    assert bool(caplog.records) is warns


@pytest.mark.parametrize(
    ("queues", "limit", "fix"),
    [
        ([Queue("a", queue_arguments={LIMIT: 60_000})], 60, f"raise {LIMIT} in its queue_arg"),
        ([Queue("a", consumer_arguments={LIMIT: 60_000})], 60, f"raise {LIMIT} in its consumer_a"),
        # RabbitMQ looks at the consumer first.
        ([Queue("a", queue_arguments={LIMIT: 1}, consumer_arguments={LIMIT: 60_000})], 60, "its"),
        # The least of all queues, since they share a channel.
        ([Queue("b"), Queue("a", queue_arguments={LIMIT: 60_000})], 60, f"({LIMIT} of queue a)"),
        ([Queue("b"), Queue("a", queue_arguments={LIMIT: 7_200_000})], 1800, "rabbitmq.conf"),
        ([Queue("a", queue_arguments={LIMIT: 7_200_000})], 7200, f"({LIMIT} of queue a)"),
        # What RabbitMQ refuses.
        ([Queue("a", queue_arguments={LIMIT: "long", "x-max-priority": 3})], 1800, "rabbitmq.conf"),
    ],
)
def test_arguments_of_queues_count(
    app: Celery, caplog: pytest.LogCaptureFixture, queues: list[Queue], limit: int, fix: str
) -> None:
    start(consumer_of(app, *queues), flush_interval=limit - 1, name="unit.faster")
    assert caplog.records == []
    start(consumer_of(app, *queues), flush_interval=limit)
    assert f"within {limit}s" in caplog.text
    assert fix in caplog.text


def test_arguments_count_where_the_broker_has_no_limit_of_its_own(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.batches_consumer_timeout = None
    queues = [Queue("b"), Queue("a", queue_arguments={LIMIT: 60_000})]
    start(consumer_of(app, *queues), flush_interval=60)
    assert "within 60s" in caplog.text


@pytest.mark.parametrize("late", [True, False])
def test_with_acks_late_the_run_counts(
    app: Celery, caplog: pytest.LogCaptureFixture, late: bool
) -> None:
    start(consumer_of(app), flush_interval=1800, acks_late=late)
    assert ("with acks_late for the batch to end" in caplog.text) is late


def test_an_interval_that_is_set_while_the_worker_runs(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of with the next request, and once."""
    consumer = consumer_of(app)
    task = start(consumer, flush_interval=60)
    assert caplog.records == []
    task.flush_interval = 1800
    for number in range(2):
        message = protocol_2(app, f"id-{number}", task.name, channel=Channel())
        consumer.strategies[task.name](message, None, message.ack, message.reject, [])
        assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "flush_interval is 1800s" in caplog.text


@pytest.mark.parametrize(
    ("rate_limit", "disabled", "warns"),
    [("1/h", False, True), ("2/h", False, True), ("3/h", False, False), ("1/h", True, False)],
)
def test_a_rate_limit_that_is_too_low(
    app: Celery, caplog: pytest.LogCaptureFixture, rate_limit: str, disabled: bool, warns: bool
) -> None:
    """A batch that waits for one turn reaches the limit."""
    consumer = consumer_of(app)
    consumer.disable_rate_limits = disabled
    task = make_task(app, name="unit.slow", rate_limit=rate_limit)
    consumer.task_buckets[task.name] = Consumer.bucket_for_task(consumer, task)
    start(consumer)
    assert [record.levelname for record in caplog.records] == (["WARNING"] if warns else [])
    if warns:
        for part in ("Task unit.slow: rate_limit", "within 1800s", "Raise rate_limit, or raise"):
            assert part in caplog.text


def test_an_eta_that_is_too_late(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """A call whose ETA and interval together reach the limit is warned of once, with a fix."""
    app.conf.batches_consumer_timeout = 100
    consumer = consumer_of(app)
    task = start(consumer, flush_interval=60)
    for countdown, warnings in ((30, 0), (50, 1), (70, 1)):
        message = protocol_2(app, "id", task.name, channel=Channel(), countdown=countdown)
        consumer.strategies[task.name](message, None, message.ack, message.reject, [])
        assert len(caplog.records) == warnings
    for part in ("unit.slow", "60s", "100s", "Use shorter ETAs", "batches_consumer_timeout to it"):
        assert part in caplog.text


@pytest.mark.parametrize(
    ("setting", "seconds"), [(1800, 1800.0), (0.5, 0.5), (Fraction(3, 2), 1.5), (None, None)]
)
def test_settings_that_make_sense(app: Celery, setting: Any, seconds: float | None) -> None:
    assert consumer_timeout(app.conf) == 1800
    app.conf.batches_consumer_timeout = setting
    assert consumer_timeout(app.conf) == seconds


def test_the_setting_has_a_name_with_a_namespace() -> None:
    app = Celery("configured", set_as_current=False)
    settings = {"CELERY_BATCHES_CONSUMER_TIMEOUT": 60, "CELERY_TASK_DEFAULT_QUEUE": "q"}
    app.config_from_object(SimpleNamespace(**settings), namespace="CELERY")
    assert consumer_timeout(app.conf) == 60
    app.close()


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        *((value, TypeError) for value in ("1800", True, False, [1800], {})),
        *((value, ValueError) for value in (0, -1, float("inf"), float("nan"))),
    ],
)
def test_a_setting_that_makes_no_sense_stops_the_worker(
    app: Celery, setting: Any, error: type[Exception]
) -> None:
    """Before it takes in a message, with what to set instead. On other brokers too."""
    app.conf.batches_consumer_timeout = setting
    with pytest.raises(error, match=r"batches_consumer_timeout = .*: it has to be .* or None"):
        BatchesStep(FakeConsumer(app))
