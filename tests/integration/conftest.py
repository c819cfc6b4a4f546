"""Apps on real brokers, each with a queue of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Deployment, Reports, options_for
from kombu.utils.uuid import uuid


@pytest.fixture
def reports() -> Iterator[Reports]:
    reports = Reports()
    yield reports
    reports.close()


@pytest.fixture
def deploy(tmp_path: Path, reports: Reports) -> Iterator[Callable[..., Deployment]]:
    """A function that deploys an app of `apps/` with this broker, backend and configuration."""
    deployments: list[Deployment] = []

    def deploy(name: str, broker: str, backend: str | None = None, **config: Any) -> Deployment:
        options = {**options_for(broker, backend, f"test-{uuid()}"), **config}
        directory = tmp_path / str(len(deployments))
        deployments.append(Deployment(name, directory, options, reports))
        return deployments[-1]

    yield deploy
    for deployment in deployments:
        deployment.close()


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ]
)
def broker(request: pytest.FixtureRequest) -> str:
    """The URL of each broker in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def backend(broker: str) -> str:
    """Where results go: Redis with Redis, the callers' own queues with RabbitMQ."""
    return broker if broker.startswith("redis") else "rpc://"


@pytest.fixture
def site(shared: tuple[Any, ...]) -> Iterator[Deployment]:
    """What the tests of a module share: its fixture `shared` has the deployment and its worker."""
    yield shared[0]
    print(shared[1].text)  # Shown if the test has failed.


@pytest.fixture
def worker(shared: tuple[Any, ...]) -> Any:
    """The worker of that deployment."""
    return shared[1]
