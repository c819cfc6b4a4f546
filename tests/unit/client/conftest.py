"""Tasks whose messages are taken from real brokers as they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import pools
from kombu.utils.uuid import uuid

from celery_batches import Batches


class Deployment:
    """An app, a task of its own queue, and what is in the queue."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.queue = f"test-{uuid()}"
        app.conf.task_default_queue = self.queue
        self.task = self.make_task("unit.click")

    def make_task(self, name: str, **options: Any) -> Any:
        def body(requests: Any) -> None: ...

        return self.app.task(name=name, **{"base": Batches, **options})(body)

    def take(self) -> list[Any]:
        """Take all messages out of the queue."""
        with self.app.connection_for_write() as connection:
            queue = self.app.amqp.queues[self.queue](connection.default_channel)
            queue.declare()
            return list(iter(lambda: queue.get(no_ack=True, accept=ACCEPT), None))

    def close(self) -> None:
        with self.app.connection_for_write() as connection:
            connection.default_channel.queue_delete(self.queue)
        pools.reset()


ACCEPT = ["json", "pickle", "yaml", "msgpack"]


def ids_of(messages: list[Any]) -> list[str]:
    return [message.properties["correlation_id"] for message in messages]


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
