"""The worker obeys the setting `batches_shortcuts`, however the app is configured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from vine import promise

from celery_batches.core.shortcuts import SHORTCUTS, enabled_shortcuts
from celery_batches.worker import acks
from celery_batches.worker.acks import DeferredAck, LeanPromise
from celery_batches.worker.bootstep import BatchesStep
from kit.consumer import FakeConsumer
from kit.messages import protocol_2
from kit.tasks import make_task

STYLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "new": ({"batches_shortcuts": ["amqp_acks"], "task_default_queue": "q"}, {}),
    "old": ({"batches_shortcuts": ["amqp_acks"], "CELERY_DEFAULT_QUEUE": "q"}, {}),
    "namespace": (
        {"CELERY_BATCHES_SHORTCUTS": ["amqp_acks"], "CELERY_TASK_DEFAULT_QUEUE": "q"},
        {"namespace": "CELERY"},
    ),
}


@pytest.fixture
def own_app() -> Any:
    app = Celery("configured", set_as_current=False)
    yield app
    app.close()


@pytest.mark.parametrize("style", STYLES)
def test_the_setting_is_one_of_the_app(own_app: Celery, style: str) -> None:
    """In a module or object, with Celery's new or old names beside it, or with a prefix."""
    settings, options = STYLES[style]
    own_app.config_from_object(SimpleNamespace(**settings), **options)
    assert own_app.conf.task_default_queue == "q"
    assert enabled_shortcuts(own_app.conf) == {"amqp_acks"}


def test_the_setting_may_be_set_on_the_app(own_app: Celery) -> None:
    assert enabled_shortcuts(own_app.conf) == SHORTCUTS
    own_app.conf.batches_shortcuts = False
    assert enabled_shortcuts(own_app.conf) == set()


@pytest.mark.parametrize(("setting", "error"), [("amqp_acks", TypeError), (["nope"], ValueError)])
def test_a_setting_that_makes_no_sense_stops_the_worker(
    app: Celery, setting: Any, error: type[Exception]
) -> None:
    """When its consumer is made, before it takes in a message."""
    app.conf.batches_shortcuts = setting
    with pytest.raises(error, match="batches_shortcuts"):
        BatchesStep(FakeConsumer(app))


def deliver(app: Any, setting: Any) -> tuple[Any, Any, Any]:
    """Deliver a message; return its request, and the promises that it came with."""
    app.conf.batches_shortcuts = setting
    task = make_task(app, flush_every=2)
    consumer = FakeConsumer(app)
    strategy = task.Strategy(task, app, consumer)
    message = protocol_2(app, "id-0", task.name)
    given = [
        promise(lambda call, *args: call(*args), (call,))
        for call in (message.ack_log_error, message.reject_log_error)
    ]
    strategy(message, None, *given, [])
    (buffered,) = strategy.__self__._pending.close()
    return buffered.item, *given


def test_celerys_promises_are_kept_lean(app: Celery) -> None:
    request, _, _ = deliver(app, {"lean_promises", "amqp_acks"})
    assert isinstance(request.on_ack, DeferredAck)
    assert request.on_ack.shortcuts == {"lean_promises", "amqp_acks"}
    assert type(request.on_reject) is LeanPromise


def test_celerys_promises_are_kept_as_they_are(app: Celery) -> None:
    """Without the shortcut: acknowledging and rejecting is Celery's alone."""
    request, ack, reject = deliver(app, SHORTCUTS - {"lean_promises"})
    assert request.on_ack is ack
    assert request.on_reject is reject


@pytest.mark.parametrize("missing", ["args", "listeners", "fun", "on_error"])
def test_promises_of_another_make_are_kept_as_they_are(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """If vine changes its promises, these do what they do."""
    called: list[Any] = []

    class Promise:
        def __init__(self) -> None:
            self.fun, self.args, self.listeners, self.on_error = called.append, (1,), [None], None
            delattr(self, missing)

        def __call__(self, *args: Any) -> None:
            called.append(args)

    monkeypatch.setattr(acks, "promise", Promise)
    for kind in (DeferredAck, LeanPromise):
        kind(Promise())("logger", "errors")
    assert called == [("logger", "errors")] * 2
