"""Servers for the tests. `scripts/services.py run` provides them, and sets these variables."""

import os

import pytest


@pytest.fixture(scope="session")
def redis_url() -> str:
    return _service("TEST_REDIS_URL")


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    return _service("TEST_RABBITMQ_URL")


@pytest.fixture(scope="session")
def postgresql_url() -> str:
    return _service("TEST_POSTGRESQL_URL")


def _service(variable: str) -> str:
    url = os.environ.get(variable)
    if url:
        return url
    if os.environ.get("CI") == "true":
        pytest.fail(f"{variable} is not set, and CI has to run every test")
    pytest.skip(f"{variable} is not set")
