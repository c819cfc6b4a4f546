"""An app that talks to nobody: in-memory broker, results in a dictionary."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, _state, signals
from celery.backends.cache import _DUMMY_CLIENT_CACHE
from celery.worker import state as worker_state
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture
def app() -> Iterator[Celery]:
    """The current app, for the length of a test."""
    before = _state._tls.current_app
    # Tasks are shared with every app that comes later, unless that is undone.
    shared = set(_state._on_app_finalizers)
    # To Celery before 5.4, the same method of two objects is one receiver.
    receivers = list(signals.before_task_publish.receivers)
    app = Celery("unit", broker="memory://", backend="cache+memory://")
    app.conf.task_store_eager_result = False
    app.set_current()
    yield app
    app.close()
    signals.before_task_publish.receivers[:] = receivers
    _DUMMY_CLIENT_CACHE.clear()
    _state._set_current_app(before)
    _state._on_app_finalizers.intersection_update(shared)


@pytest.fixture(autouse=True)
def _log_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever level a worker has set that ran in this process for another test."""
    for logger in (None, "celery", "celery_batches"):
        caplog.set_level(logging.WARNING, logger=logger)


@pytest.fixture(autouse=True)
def _clean_worker_state() -> Iterator[None]:
    """Celery keeps what a worker knows of its requests in module globals."""
    yield
    worker_state.reset_state()
    worker_state.revoked.clear()


@pytest.fixture(autouse=True)
def _clean_stacks() -> Iterator[None]:
    """Whatever happens in a body, nothing is left behind on the stack of running tasks."""
    assert _state._task_stack.top is None
    yield
    assert _state._task_stack.top is None


@pytest.fixture
def signal_log(app: Any) -> Iterator[list[tuple[str, Any, dict[str, Any]]]]:
    """Every signal that brackets execution: (name, sender, arguments), in order."""
    from celery import signals

    log: list[tuple[str, Any, dict[str, Any]]] = []
    names = ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry")
    receivers = []
    for name in names:

        def receive(sender: Any = None, _name: str = name, **kwargs: Any) -> None:
            log.append((_name, sender, kwargs))

        getattr(signals, name).connect(receive, weak=False)
        receivers.append((name, receive))
    yield log
    for name, receive in receivers:
        getattr(signals, name).disconnect(receive)
