"""Brokers whose acknowledgements are watched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kit.brokers import Broker, RedisBroker
from kit.wires import Wire


@pytest.fixture(params=["", "some-prefix:"], ids=["bare", "prefixed"])
def broker(app: Any, redis_url: str, request: pytest.FixtureRequest) -> Iterator[RedisBroker]:
    broker = RedisBroker(app, redis_url, request.param)
    yield broker
    broker.close()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


@pytest.fixture
def rabbitmq(app: Any, rabbitmq_url: str) -> Iterator[Broker]:
    broker = Broker(app, rabbitmq_url)
    broker.channel.no_ack_consumers = set()
    yield broker
    broker.close()
