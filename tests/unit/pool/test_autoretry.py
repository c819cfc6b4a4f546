"""autoretry_for retries each request after the wait for its own count of retries."""

from __future__ import annotations

from typing import Any

import pytest

from kit.tracing import World

AUTO = {"autoretry_for": (ValueError,), "dont_autoretry_for": (UnicodeError,)}


def countdowns(monkeypatch: pytest.MonkeyPatch, task: Any) -> list[Any]:
    """The countdown of each retry, in order."""
    found: list[Any] = []
    original = task.signature_from_request

    def spy(*args: Any, **kwargs: Any) -> Any:
        found.append(kwargs["countdown"])
        return original(*args, **kwargs)

    monkeypatch.setattr(task, "signature_from_request", spy)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [180, 180, 180]),
        ({"retry_kwargs": {"countdown": 7}}, [7, 7, 7]),
        ({"retry_backoff": True, "retry_jitter": False}, [1, 2, 4]),
        ({"retry_backoff": 5, "retry_jitter": False, "retry_backoff_max": 8}, [5, 8, 8]),
    ],
    ids=["plain", "kwargs", "backoff", "limited"],
)
def test_autoretry(
    sending: World, monkeypatch: pytest.MonkeyPatch, options: Any, expected: Any
) -> None:
    """autoretry_for retries all requests, each after the wait for its own count of retries."""

    def body(requests: Any) -> None:
        raise ValueError("auto")

    sending.define(body, **AUTO, **options)
    found = countdowns(monkeypatch, sending.task)
    sending.run(None, {"retries": 0}, {"retries": 1}, {"retries": 2})
    assert found == expected
    assert [sent["retries"] for _, sent in sending.sent] == [1, 2, 3]


def test_jitter_is_within_the_backoff(sending: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With retry_jitter a wait is random, up to that of the backoff."""

    def body(requests: Any) -> None:
        raise ValueError("auto")

    sending.define(body, **AUTO, retry_backoff=10)
    found = countdowns(monkeypatch, sending.task)
    sending.run(None)
    assert all(0 <= countdown <= 10 for countdown in found)


def test_a_retry_of_the_body_is_not_automatic(
    sending: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the body asks for a retry itself, its countdown counts, whatever the backoff."""

    def body(self: Any, requests: Any) -> None:
        try:
            raise ValueError("manual")
        except ValueError as exc:
            raise self.retry(exc=exc, countdown=33) from exc

    sending.define(body, bind=True, **AUTO, retry_backoff=True)
    found = countdowns(monkeypatch, sending.task)
    sending.run(None)
    assert found == [33, 33, 33]


def test_autoretry_has_limits(sending: World) -> None:
    """retry_kwargs may set max_retries; over it, the exception itself is the failure."""

    def body(requests: Any) -> None:
        raise ValueError("auto")

    sending.define(body, **AUTO, retry_kwargs={"max_retries": 1})
    sending.run(None, {"retries": 1})
    assert sending.states == ["FAILURE", "RETRY", "RETRY"]
    assert isinstance(sending.app.AsyncResult("id-0").result, ValueError)


def test_what_is_not_retried_automatically(sending: World) -> None:
    """dont_autoretry_for and exceptions of other types fail as ever."""

    def body(requests: Any) -> None:
        raise UnicodeError("never")

    sending.define(body, **AUTO)
    sending.run(None)
    assert sending.sent == []
    assert sending.states == ["FAILURE"] * 3
