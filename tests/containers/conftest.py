"""A worker and a broker in containers, by pytest-celery 1: `make containers` runs these tests.

That version cannot be installed beside 0.0, which all other tests use, so it has an environment of
its own. Without it, or without a Docker engine, these tests are skipped and say why.
"""

import os
from importlib.metadata import version
from pathlib import Path

import pytest
from containers import tasks

try:
    import docker
except ImportError:  # The environment of the other tests.
    docker = None

HERE = Path(__file__).parent
WHEELS = HERE.parents[1] / "dist"


def obstacle():
    """Why no container can be started from here, if so."""
    if docker is None or version("pytest-celery").startswith("0."):
        return "needs pytest-celery 1, in an environment of its own: run `make containers`"
    try:
        docker.from_env().ping()
    except docker.errors.DockerException as error:
        return f"no Docker engine answers: {error}"
    return None


def pytest_collection_modifyitems(items):
    """Skip all tests of this directory, for one reason; where Docker is required, stop."""
    ours = [item for item in items if HERE in item.path.parents]
    reason = obstacle() if ours else None
    if reason and os.environ.get("REQUIRE_DOCKER") == "1":
        raise pytest.UsageError(f"REQUIRE_DOCKER=1, but {reason}")
    if reason:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def celery_base_worker_image(docker_client):
    """The image that pytest-celery starts the worker from, in place of its own."""
    assert any(WHEELS.glob("*.whl")), "no wheel in dist/: `make containers` builds it"
    image, _ = docker_client.images.build(
        path=str(WHEELS),
        dockerfile=str(HERE / "Dockerfile"),
        tag="celery-batches/tests:worker",
        rm=True,
    )
    return image


@pytest.fixture
def default_worker_tasks():
    return {tasks}


@pytest.fixture(params=["celery_rabbitmq_broker", "celery_redis_broker"])
def celery_broker(request):
    """Each broker in turn, by the name of pytest-celery's fixture."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def default_rabbitmq_broker_image():
    return "rabbitmq:3"


@pytest.fixture
def default_redis_broker_image():
    return "redis:7"


@pytest.fixture
def default_redis_backend_image():
    return "redis:7"
