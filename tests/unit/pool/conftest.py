"""The world in which a batch is traced: without a broker, or with one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import signals

from kit.tracing import World


@pytest.fixture(autouse=True)
def _debug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, logger="celery_batches"):
        yield


@pytest.fixture
def world(app: Any) -> Iterator[World]:
    world = World(app)
    yield world
    signals.before_task_publish.disconnect(world._on_publish)


@pytest.fixture
def sending(app: Any, world: World) -> World:
    """The same, with a broker."""
    app.conf.task_always_eager = False
    return world
