"""Tasks whose messages are taken from real brokers as they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu.utils.uuid import uuid

from kit.sending import Deployment


@pytest.fixture
def deploy(app: Any, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Deployment]]:
    """Make a deployment on a broker."""
    made: list[Deployment] = []

    def deploy(broker: str, **transport_options: Any) -> Deployment:
        app.conf.broker_url = (
            f"memory://{uuid()}" if broker == "memory" else request.getfixturevalue(f"{broker}_url")
        )
        app.conf.broker_transport_options = transport_options
        made.append(Deployment(app))
        return made[-1]

    yield deploy
    for deployment in made:
        deployment.close()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ]
)
def deployment(deploy: Any, request: pytest.FixtureRequest) -> Deployment:
    made: Deployment = deploy(request.param)
    return made
