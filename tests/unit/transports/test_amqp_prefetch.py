"""An AMQP broker is told a prefetch count as py-amqp tells it, and not waited for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import amqp
import pytest

from celery_batches.core.shortcuts import SHORTCUTS
from celery_batches.transports.amqp_prefetch import prefetch_sender
from celery_batches.worker.bootstep import BatchesStep
from kit.consumer import FakeConsumer


class Channel(amqp.Channel):  # type: ignore[misc]  # py-amqp is not typed
    """Of a connection that nobody reads from."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.waited_for: list[Any] = []

    def send_method(self, *args: Any, wait: Any = None, **options: Any) -> None:
        self.sent.append((args, options))
        self.waited_for.append(wait)


def consumer_on(channel: Any, *, global_: bool = True) -> Any:
    """Return a consumer whose messages come in on that channel."""
    return SimpleNamespace(
        connection=SimpleNamespace(
            qos_semantics_matches_spec=not global_, transport=SimpleNamespace(driver_type="amqp")
        ),
        qos_global=global_,
        task_consumer=SimpleNamespace(channel=channel),
    )


def test_an_amqp_broker_is_told_what_py_amqp_tells_it_and_not_waited_for() -> None:
    consumer = consumer_on(channel := Channel())
    tell = prefetch_sender(consumer)
    assert tell is not None
    tell(7)
    channel.basic_qos(0, 7, True)
    ours, celerys = channel.sent
    assert ours == celerys
    assert channel.waited_for[0] is None
    assert channel.waited_for[1] is not None


def test_brokers_that_are_told_in_celerys_way() -> None:
    """Others than AMQP, counts of single consumers, and channels with a way of their own."""

    class Own(Channel):
        def basic_qos(self, *args: Any, **options: Any) -> None:
            """Do something else."""

    assert prefetch_sender(consumer_on(Channel())) is not None
    for consumer in (
        consumer_on(SimpleNamespace()),
        consumer_on(Own()),
        consumer_on(Channel(), global_=False),
    ):
        assert prefetch_sender(consumer) is None


@pytest.mark.parametrize("missing", ["Basic", "Qos"])
def test_a_py_amqp_that_is_not_as_known(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Celery's way does not break with it."""
    monkeypatch.delattr(amqp.spec if missing == "Basic" else amqp.spec.Basic, missing)
    assert prefetch_sender(consumer_on(Channel())) is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_switch(app: Any, enabled: bool) -> None:
    """Without the shortcut the worker tells the broker by Celery's own counter."""
    app.conf.batches_shortcuts = SHORTCUTS - (set() if enabled else {"amqp_prefetch"})
    consumer = FakeConsumer(app)
    on_amqp = consumer_on(channel := Channel())
    consumer.connection, consumer.task_consumer = on_amqp.connection, on_amqp.task_consumer
    consumer.connection.connection_errors = ()
    consumer.qos_global = True
    consumer.prefetch_counts.clear()
    BatchesStep(consumer).start(consumer)
    assert [bool(channel.sent), bool(consumer.prefetch_counts)] == [enabled, not enabled]
