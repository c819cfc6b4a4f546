"""The examples of the documentation, on a worker in the same process."""

import importlib.util

import pytest
from celery import _state

from kit.examples import EXAMPLES


@pytest.fixture(autouse=True)
def _app_globals():
    """Leave what an example changes for all of the process as it was.

    These are Celery's current and default app, and the tasks that each new app gets.
    """
    current, default = getattr(_state._tls, "current_app", None), _state.default_app
    finalizers = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(finalizers)
    _state._set_current_app(current)
    _state.set_default_app(default)


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Import an example anew, set up for a broker and a result backend in memory."""
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "cache+memory://")
    monkeypatch.setenv("DATABASE", str(tmp_path / "example.db"))

    def load_example(name, **environment):
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        spec = importlib.util.spec_from_file_location(
            f"{name}_{tmp_path.name}", EXAMPLES / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # The broker in memory is one for the whole process.
        module.app.conf.task_default_queue = f"{name}-{tmp_path.name}"
        module.app.conf.broker_transport_options = {"polling_interval": 0.01}
        return module

    return load_example
