"""Whoever acknowledges in a way of their own is obeyed, and whoever waits for it is told."""

from __future__ import annotations

from typing import Any

import pytest
from celery.worker.request import Request

from kit.brokers import SIZE, Batch, RedisBroker
from kit.wires import Wire


@pytest.mark.redis
@pytest.mark.parametrize("owner", ["channel", "qos", "message"])
def test_a_transport_with_an_ack_of_its_own_keeps_it(broker: RedisBroker, owner: str) -> None:
    batch = Batch(broker)
    asked: list[Any] = []

    def own(base: type) -> type:
        name = "basic_ack" if owner == "channel" else "ack"

        def ack(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(self)
            return getattr(base, name)(self, *args, **kwargs)

        return type("Own", (base,), {name: ack})

    found = {"channel": [broker.channel], "qos": [broker.channel.qos], "message": batch.messages}
    for one in found[owner]:
        one.__class__ = own(type(one))
    batch.end()
    broker.run_the_loop()
    assert len(asked) == SIZE
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)


class Picky(Request):
    """Acknowledges when it feels like it."""

    asked = 0

    def acknowledge(self) -> None:
        self.asked += 1
        if self.id != "id-1":
            super().acknowledge()


class Telling(Request):
    """Has something to do of its own when it is acknowledged."""

    def __init__(self, *args: Any, on_ack: Any, **kwargs: Any) -> None:
        self.told: list[Any] = []
        super().__init__(*args, on_ack=self._tell, **kwargs)
        self._inner = on_ack

    def _tell(self, *args: Any) -> None:
        self.told.append(args)
        self._inner(*args)


@pytest.mark.redis
def test_a_request_that_overrides_acknowledge_is_obeyed(broker: RedisBroker) -> None:
    batch = Batch(broker, cls=Picky)
    batch.end()
    broker.run_the_loop()
    ids = [request.id for request in batch.requests]
    assert batch.acknowledged == [id != "id-1" for id in ids]
    assert [request.asked for request in batch.requests] == [1] * SIZE
    assert broker.unacked == (1, 1)


@pytest.mark.redis
def test_a_request_that_wraps_on_ack_is_obeyed(broker: RedisBroker, wire: Wire) -> None:
    batch = Batch(broker, cls=Telling)
    batch.end()
    before = wire.sends
    broker.run_the_loop()
    assert [len(request.told) for request in batch.requests] == [1] * SIZE
    assert wire.sends - before == 1
    assert all(batch.acknowledged)


@pytest.mark.redis
def test_who_waits_for_an_acknowledgement_is_told(broker: RedisBroker) -> None:
    """After a reconnect, Celery raises the prefetch count with each that is done."""
    batch = Batch(broker)
    told: list[Any] = []
    for request in batch.requests[:2]:
        request.on_ack.then(told.append)
    batch.end()
    assert len(told) == 2
    assert broker.soon == 3
    broker.run_the_loop()
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)
